"""`python -m imagen.cli`: the `imagen` command from a checkout."""

from imagen.cli.command import main

if __name__ == "__main__":
    main()
