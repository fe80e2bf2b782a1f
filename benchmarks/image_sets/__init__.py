"""GEBMs of the shipped image recipe against their own base and a GAN of the same networks, on five sets of images."""
