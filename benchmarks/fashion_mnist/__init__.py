"""A GEBM, a GAN and a VAE of the same networks, trained for the same time on Fashion-MNIST."""
