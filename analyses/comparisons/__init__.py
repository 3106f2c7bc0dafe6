"""What is compared: the declared contrasts, trends, repeats and checks."""
