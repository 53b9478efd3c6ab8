"""Fresh processes that measure one tree or two in turn: ``ab`` and ``calibrate``. Imports no torch."""
