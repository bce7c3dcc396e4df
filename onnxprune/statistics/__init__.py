"""What calibration samples leave behind: moments of layer inputs, models run piece by piece, changes of outputs."""
