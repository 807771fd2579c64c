"""Sealed rounds: nobody sees one site's update, and the gate still judges each. `sealed_round.py` says how."""
