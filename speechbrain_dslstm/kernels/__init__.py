"""Compiled CPU loops of the CNN block and of its batch norm.

The model can be understood without them: the tests compare them with
``conv_pool.conv_pool_reference`` and with the plain torch code in ``layers``.
"""
