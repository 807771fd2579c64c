"""The custodian of sealed rounds: a second institution's process, which sees no update and gives out one sum a round."""
