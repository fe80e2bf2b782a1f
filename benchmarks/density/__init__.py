"""The density study: flows by maximum likelihood, by joint KALE, and with an energy on top, on real tables."""
