"""DP-SGD: per-example gradients, clipping and the engines that compute them."""
