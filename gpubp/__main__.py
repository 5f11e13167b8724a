"""``python -m gpubp``: the command line."""

from gpubp.cli import main

if __name__ == "__main__":
    main()
