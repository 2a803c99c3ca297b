"""What is measured: accuracy, calibration, and the detection of images of no known class."""
