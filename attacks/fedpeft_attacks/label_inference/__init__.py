"""What an update shows of the labels behind it: the shares of the classes, and the label of a known text."""
