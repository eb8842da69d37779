"""Names of the models that come with the package; imports nothing.

The default is the most accurate. The one for streams gives an endless recording the
answer that it gives the file.
"""

__all__ = ["DEFAULT_MODEL", "STREAM_MODEL"]

DEFAULT_MODEL = "pretrained/emotion-dslstm-whisper"
STREAM_MODEL = "pretrained/emotion-dslstm-emodb"
