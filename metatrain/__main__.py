"""Run the command line as `python -m metatrain`, as jobs on a cluster do."""

from metatrain.cli import main

if __name__ == "__main__":
    main()
