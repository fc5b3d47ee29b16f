"""``python -m ditlab``."""

from ditlab.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
