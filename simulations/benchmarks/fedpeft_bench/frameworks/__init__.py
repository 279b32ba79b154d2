"""DP-SGD on one problem by fedpeft and by others: epsilon, accuracy, time."""
