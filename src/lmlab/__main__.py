"""`python -m lmlab` is `lmlab`, for where the command is not on the path."""

from lmlab.cli import run

if __name__ == "__main__":
    run()
