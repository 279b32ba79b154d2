"""The hot loops: threshold selection, ternary magnitudes and Golomb bit packing, vectorised in numpy.

Kernels take and return plain arrays; they know nothing of layouts, envelopes or privacy.
"""
