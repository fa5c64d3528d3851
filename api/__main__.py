"""``python -m foretile``."""

from foretile.cli import main

if __name__ == "__main__":
    main()
