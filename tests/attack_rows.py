"""What was tried against version 0.1.0 and broke it, and the test that holds each of them now.

Numbers are those of the review. A test without an "e2e" in its path needs no processes: `make test-attacks` runs it beside
the suite's own rows. docs/results/faults.md shows this table; tests/test_attack_rows.py holds both to it.
"""

from __future__ import annotations

from typing import NamedTuple

COORDINATOR = "tests/e2e/test_attacks_coordinator.py"
WIRE = "tests/e2e/test_attacks_wire.py"
SURVIVES = "tests/client/test_agent_survives.py"
DISK = "tests/server/test_damaged_disk.py"
ACCESS = "tests/core/web/test_access.py"
SERVICES = "tests/client/test_background_services.py"
RECIPE = f"{COORDINATOR}::test_a_request_outside_the_floor_is_refused_before_a_download"
SMALL = "tests/server/rounds/test_loop.py::test_very_small_updates_throw_nobody_out_and_stop_no_round"
HEADER = "tests/core/read/test_volume_header.py::test_no_header_reads_another_file_of_the_machine"
CONFIRM = f"{WIRE}::test_a_site_confirms_away_nobody_s_message"
TWIN = "tests/e2e/test_attacks_port.py::test_one_key_is_enrolled_once_however_it_is_spelt"
STRIKES = "tests/core/federated/test_admission.py::test_a_site_that_points_a_little_against_the_others_is_noted_and_refused_when_it_goes_on"


class AttackRow(NamedTuple):
    """One attack: its number in the review ("low": among its low findings), what it is, and the test that tries it."""

    number: int | str
    finding: str
    attack: str
    test: str


ROWS = [
    AttackRow(1, "F3", "confirming one's own reply away while it is read", CONFIRM),
    AttackRow(2, "F3", "the same before the read begins", CONFIRM),
    AttackRow(3, "F4", "a very small update of two, quorum 1", SMALL),
    AttackRow(4, "F4", "the same, quorum 2", SMALL),
    AttackRow(5, "F4", "two of four with very small updates", SMALL),
    AttackRow(
        7, "F9", "loss of 1e308", "tests/server/rounds/test_asking.py::test_a_figure_that_cannot_be_is_a_bad_record"
    ),
    AttackRow(
        8,
        "F8",
        "online, never answers",
        "tests/server/rounds/test_quorum.py::test_a_site_that_never_answers_costs_two_rounds_their_time_and_no_more",
    ),
    AttackRow(15, "F3", "confirming another site's reply away", CONFIRM),
    AttackRow(16, "F7", "gradient ascent within the gate, one of three", STRIKES),
    AttackRow(
        20,
        "F7",
        "the same, two of five together",
        "tests/server/rounds/test_loop.py::test_from_four_sites_on_the_default_rule_cuts_off_the_outermost_and_the_ledger_says_so",
    ),
    AttackRow(
        21,
        "-",
        "a stolen node key answers junk",
        f"{WIRE}::test_a_stolen_node_key_alone_does_not_cost_the_hospital_its_place",
    ),
    AttackRow(25, "F16", "one key in two spellings", TWIN),
    AttackRow(26, "F16", "the twin is revoked", TWIN),
    AttackRow(27, "F1", "one step, one image, one visible patch", RECIPE),
    AttackRow(
        30,
        "F10",
        "another length under a new campaign's name",
        f"{COORDINATOR}::test_a_new_campaigns_name_does_not_reset_the_comparison",
    ),
    AttackRow(
        34,
        "F10",
        "imprint rows under 1 % or 3 % of noise",
        f"{COORDINATOR}::test_crafted_weights_are_refused_although_the_request_keeps_every_bound",
    ),
    AttackRow(
        35, "F10", "a round older than what was done", f"{COORDINATOR}::test_an_earlier_round_with_another_encoder"
    ),
    AttackRow(
        39,
        "F5",
        "a recipe nested 100,000 deep",
        f"{SURVIVES}::test_a_recipe_nested_deep_is_refused_and_the_next_request_is_served",
    ),
    AttackRow(41, "F1", "fp32 where int8 was agreed", RECIPE),
    AttackRow(
        42,
        "F10",
        "fields changed under the signature",
        "tests/core/federated/test_messages.py::test_no_field_can_be_changed_under_a_signature",
    ),
    AttackRow(43, "F11", "10^9 steps", RECIPE),
    AttackRow(44, "F11", "decoder 200,000 deep", RECIPE),
    AttackRow(67, "F2", "mhd that names any file, four spellings", HEADER),
    AttackRow(68, "F2", "nrrd that names any file, two spellings", HEADER),
    AttackRow(69, "F2", "the same inside a zip", HEADER),
    AttackRow(
        70,
        "F2",
        "mhd that names the site's key",
        "tests/core/sandbox/test_confinement.py::test_a_confined_process_reads_its_libraries_and_nothing_else",
    ),
    AttackRow(71, "F2", "a link beside the header", HEADER),
    AttackRow(
        73,
        "F14",
        "a link to itself",
        "tests/core/read/test_discover.py::test_folders_that_are_linked_in_are_walked_once_and_loops_end",
    ),
    AttackRow(
        77,
        "F14",
        "a huge zip, seen when the page looks for a scan",
        f"{SERVICES}::test_a_frame_in_an_archive_can_be_released_and_the_agent_opens_no_archive",
    ),
    AttackRow(
        78,
        "F6",
        "DICOMweb answers 302 to an inner address",
        "tests/client/intake/test_dicomweb.py::test_redirects_are_named_and_not_followed",
    ),
    AttackRow(
        79,
        "F6",
        "a deflated instance from the PACS",
        "tests/client/intake/test_dicomweb.py::test_an_instance_is_stored_as_it_comes_and_never_opened",
    ),
    AttackRow(
        87,
        "F15",
        "40 silent strangers at the C-STORE port",
        "tests/client/intake/test_cstore.py::test_a_flood_of_silent_connections_keeps_nobody_out",
    ),
    AttackRow(
        88,
        "F15",
        "associations that only echo",
        "tests/client/intake/test_cstore.py::test_echoes_do_not_keep_an_association",
    ),
    AttackRow(
        92,
        "F14",
        "junk whose identification needs too much memory",
        f"{SERVICES}::test_an_instance_whose_identification_took_too_much_memory_waits_for_a_person",
    ),
    AttackRow(98, "low", "the cookie after log out", f"{ACCESS}::test_a_cookie_is_worth_nothing_after_log_out"),
    AttackRow(100, "low", "70 silent connections at the page", f"{ACCESS}::test_silent_connections_keep_nobody_out"),
    AttackRow(
        102,
        "F12",
        "every page but the first of the ledger damaged",
        f"{DISK}::test_a_damaged_ledger_is_one_sentence_and_is_never_made_anew",
    ),
    AttackRow(
        103, "F12", "a ledger of zero bytes", f"{DISK}::test_a_damaged_ledger_is_one_sentence_and_is_never_made_anew"
    ),
    AttackRow(
        105,
        "F12",
        "a forged result in the ledger",
        f"{DISK}::test_a_forged_result_in_the_ledger_is_noticed_at_the_next_round",
    ),
    AttackRow(
        107,
        "F12",
        "the last weight of the base set to 100",
        f"{DISK}::test_a_base_with_one_changed_weight_is_never_merged",
    ),
    AttackRow(
        114,
        "low",
        "an empty base of the round before",
        f"{SURVIVES}::test_damaged_state_of_the_round_before_does_not_cost_the_next",
    ),
    AttackRow(116, "F5", "a pending file without its keys", f"{SURVIVES}::test_a_damaged_pending_file_is_set_aside"),
    AttackRow(
        117,
        "F13",
        "a directory that was open before",
        f"{SURVIVES}::test_a_site_in_a_directory_that_was_open_is_closed",
    ),
    AttackRow("low", "-", "guesses of the page's token", f"{ACCESS}::test_guesses_are_slow_counted_and_disturb_nobody"),
    AttackRow(
        "low",
        "-",
        "a list of studies without an end",
        "tests/client/intake/test_dicomweb.py::test_one_pull_opens_so_many_studies_and_the_next_goes_on",
    ),
    AttackRow(
        "low",
        "-",
        "sent updates that stay for ever",
        "tests/client/rounds/test_jobs.py::test_what_was_sent_and_is_old_leaves_the_disk",
    ),
    AttackRow(
        "new",
        "F1",
        "a schedule that changes the weights in one step of many",
        "tests/core/federated/test_privacy.py::test_what_a_curious_coordinator_asks_is_outside",
    ),
    AttackRow(
        "new",
        "F1",
        "trap weights, faint and gated decoders, crafted positions",
        "tests/client/rounds/test_gradient_behaviour.py::test_models_that_wait_for_one_image_do_not",
    ),
    AttackRow(
        "new",
        "F1",
        "the loss of one held-out image",
        "tests/client/test_agent_survives.py::test_a_loss_is_never_that_of_a_few_images",
    ),
    AttackRow(
        "new",
        "F10",
        "a message for nobody, or without an end",
        "tests/core/federated/test_messages.py::test_a_message_is_for_one_recipient_and_for_a_time",
    ),
    AttackRow("new", "-", "an update that makes every site refuse the next encoder", "tests/server/rounds/test_leaps.py::test_no_site_makes_an_encoder_that_all_sites_refuse"),
    AttackRow("new", "F1", "two rounds that share most of their steps", "tests/client/rounds/test_campaigns.py::test_no_two_rounds_share_a_part_of_what_they_draw"),
    AttackRow("new", "F1", "copies of one picture as many images of many patients", "tests/core/federated/test_privacy.py::test_copies_of_a_picture_are_one_image_of_one_patient"),
    AttackRow("new", "-", "updates that the probe holds, one after the other", "tests/client/test_leak.py::test_held_updates_of_a_site_that_releases_by_itself_stop_no_round_and_nobody_for_good"),
    AttackRow("new", "F5", "a recipe that takes minutes to refuse", "tests/core/test_recipe.py::test_no_text_takes_long_to_refuse"),
    AttackRow("new", "F6", "answers of the PACS that unpack to gigabytes", "tests/client/intake/test_dicomweb.py::test_results_that_take_more_memory_than_bytes_end_the_pull"),
    AttackRow("new", "F6", "an answer of the PACS that drips", "tests/client/intake/test_dicomweb.py::test_an_answer_that_drips_ends"),
    AttackRow("new", "F6", "a study that the PACS cannot list", "tests/client/intake/test_dicomweb.py::test_one_study_that_the_pacs_cannot_list_keeps_no_other_away"),
]  # fmt: skip
# Where an exception that nobody foresaw is injected, and what it costs.
BOUNDARIES = [
    ("request", "agent, 16 places", "that request, refused", f"{SURVIVES}::test_an_unforeseen_exception_of_one_request_refuses_it_and_the_next_is_served"),
    ("turn", "agent's loop, 8 places", "that turn", f"{SURVIVES}::test_an_unforeseen_exception_of_the_loop_costs_a_turn"),
    ("reply", "aggregator's round", "that site's place in the round", "tests/server/rounds/test_asking.py::test_an_unforeseen_exception_over_one_reply_costs_that_site_the_round"),
    ("call", "fleet API, each call", "that call", "tests/server/flower/test_fleet_api.py::test_an_unforeseen_exception_costs_its_call"),
    ("scan", "preparation", "that unit, tried again", "tests/core/prepare/test_ledger.py::test_an_unforeseen_error_costs_its_unit_alone_and_is_tried_again"),
    ("frame", "decoding process, each step", "that frame", "tests/core/sandbox/test_answers.py::test_an_unforeseen_error_anywhere_leaves_no_frame_in_no_count"),
    ("instance", "C-STORE", "that instance, refused", "tests/client/intake/test_cstore.py::test_an_unforeseen_error_costs_one_instance"),
    ("instance", "STOW-RS", "that instance, refused", "tests/client/intake/test_stow.py::test_an_unforeseen_error_costs_one_instance"),
    ("instance", "DICOMweb", "that instance, asked for again", "tests/client/intake/test_dicomweb.py::test_an_unforeseen_error_costs_one_instance"),
    ("connection", "C-STORE port", "that association", "tests/client/intake/test_dimse_server.py::test_damaged_bytes_end_their_association_and_no_other"),
    ("request", "the site's page", "that request", "tests/client/test_page.py::test_an_unforeseen_exception_costs_its_request"),
    ("request", "the coordinator's page", "that request", "tests/server/test_dashboard.py::test_an_unforeseen_exception_costs_its_request"),
    ("message", "custodian", "that message", "tests/server/custodian/test_service.py::test_an_unforeseen_exception_costs_its_message"),
    ("service", "page, intake, metrics", "that turn of the service", f"{SERVICES}::test_an_unforeseen_error_of_a_service_is_said_once_and_it_goes_on"),
]  # fmt: skip


def as_table() -> str:
    """Both tables as docs/results/faults.md shows them."""
    lines = ["| # | finding | attack | test |", "|---|---|---|---|"]
    lines += [f"| {r.number} | {r.finding} | {r.attack} | `{r.test.rsplit('::')[-1]}` |" for r in ROWS]
    lines += ["", "| what | where | an exception there costs | test |", "|---|---|---|---|"]
    lines += [f"| {w} | {p} | {c} | `{t.rsplit('::')[-1]}` |" for w, p, c, t in BOUNDARIES]
    return "\n".join(lines) + "\n"
