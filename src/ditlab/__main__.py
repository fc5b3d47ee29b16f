"""``python -m ditlab``."""

from ditlab.cli.main import program

if __name__ == "__main__":
    program()
