"""`python -m tutelage`, which is also what `torchrun` starts."""

from tutelage.cli.main import main

if __name__ == "__main__":
    main()
