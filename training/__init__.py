"""How the embedded models were made: problems, training, export, evaluation."""
