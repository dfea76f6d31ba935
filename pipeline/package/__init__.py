"""What `import firn` is. Of a checkout (`pip install -e .`) it is this folder, and finds its modules where they lie.

public    the functions that `import firn` offers; the `__init__` of a wheel
renaming  imports and commands under the name firn
wheel     how setuptools builds the wheel
"""

from pathlib import Path

if __name__ == "firn":
    from firn.renaming import install

    install()
    __path__ = [*__path__, str(Path(__file__).parents[2])]

    from firn import public
    from firn.public import *  # noqa: F403

    __all__, __doc__ = public.__all__, public.__doc__
