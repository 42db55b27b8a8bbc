"""``python -m bptt``: the command line."""

from bptt.cli import main

if __name__ == "__main__":
    main()
