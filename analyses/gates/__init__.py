"""What may be wrong with a result, each as a sentence."""
