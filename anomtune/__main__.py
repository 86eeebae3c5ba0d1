"""``python -m anomtune``: the command."""

from anomtune.cli.main import main

if __name__ == "__main__":
    main()
