"""`python -m metatrain`, which is `metatrain` where only the interpreter is known, as on a cluster."""

from metatrain.cli import main

if __name__ == "__main__":
    main()
