"""Compiled CPU loops of the CNN block and of its batch norm.

The model can be understood without them: ``conv_pool.conv_pool_reference``
and the plain torch code in ``layers`` are what they are tested against.
"""
