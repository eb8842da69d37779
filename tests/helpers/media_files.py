"""Write sound and video in containers of FFmpeg, by PyAV."""

from fractions import Fraction

import av
import numpy as np


def write_media(path, samples, rate, codec, tracks=1, video=False, **options):
    """Write samples [n] as audio tracks; ``None`` for no sound.

    Arguments
    ---------
    path : pathlib.Path
        The ending chooses the container.
    samples : numpy.ndarray or None, [samples] or [samples, channels]
        Floats in [-1, 1].
    rate : int
        In Hz.
    codec : str
        Name of an encoder.
    tracks : int
        Number of equal audio tracks; track k has the level 1 / (k + 1).
    video : bool
        Add a track of grey pictures.
    """
    with av.open(str(path), "w", options=options) as container:
        if video:
            pictures = container.add_stream("mpeg4", rate=10)
            pictures.width = pictures.height = 32
            pictures.pix_fmt = "yuv420p"
        streams = []
        if samples is not None:
            samples = np.asarray(samples, "float32").reshape(len(samples), -1)
            layout = {1: "mono", 2: "stereo"}[samples.shape[1]]
            for _ in range(tracks):
                streams.append(container.add_stream(codec, rate=rate))
                streams[-1].layout = layout
                if codec == "wmav2":
                    streams[-1].bit_rate = 64000
        if video:
            grey = np.full((32, 32, 3), 128, "uint8")
            for k in range(10):
                frame = av.VideoFrame.from_ndarray(grey)
                frame.pts, frame.time_base = k, Fraction(1, 10)
                container.mux(pictures.encode(frame))
            container.mux(pictures.encode(None))
        for k, stream in enumerate(streams):
            data = np.ascontiguousarray(samples.T / (k + 1))
            frame = av.AudioFrame.from_ndarray(data, "fltp", layout)
            frame.sample_rate, frame.pts = rate, 0
            frame.time_base = Fraction(1, rate)
            form, size = stream.format.name, stream.frame_size or None
            resampler = av.AudioResampler(form, layout, rate, size)
            for piece in [
                *resampler.resample(frame),
                *resampler.resample(None),
            ]:
                container.mux(stream.encode(piece))
            container.mux(stream.encode(None))
