"""What a federated round is, as pure functions: no network, no processes, no directories of an installation.

Read in this order: messages, codec, local_round, admission, merge, rules/, downlink, then replay, forgetting,
forgetting_panel and enrolment."""
