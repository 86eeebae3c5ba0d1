"""What is made of the records: tables, curves, exports."""
