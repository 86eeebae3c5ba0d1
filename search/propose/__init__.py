"""A sweep file for images that somebody has: looked at, decided, and written with the reasons."""
