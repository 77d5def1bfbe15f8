"""All that logging touches on a device: scalars, histograms, which slot a place means, and windows on their way."""
