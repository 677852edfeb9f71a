"""The list of bad inputs, row by row: the tests that each row has, or why it does not apply; checked to be there.

The letters are: D data, C settings and names, K checkpoints and files, M models, R running, J judges, O output, S
what is installed.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SIZES = {"D": 32, "C": 15, "K": 10, "M": 7, "R": 7, "J": 12, "O": 10, "S": 3}

DATA = "test_bad_inputs_data.py::test_bad_data_is_refused"
ODD = "test_bad_inputs_data.py::test_odd_but_usable_data_are_used_and_counted"
FILE = "test_bad_inputs_config.py::test_bad_file_is_refused"
OPTION = "test_bad_inputs_config.py::test_bad_option_is_refused"
PLUGIN = "test_bad_inputs_config.py::test_bad_plugin_is_refused"
MODEL = "test_bad_inputs_model.py::test_bad_model_is_refused"
SERVER = "test_bad_inputs_judge.py::test_server_that_refuses"
FAULTS = "test_comparison.py::test_every_fault_at_every_operation"
DAMAGE = "test_damage.py::test_damage_in_an_interrupted_folder"
ASIDE = "test_resume.py::test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken"
DIFFERS = "test_resume.py::test_anything_else_that_differs_is_refused_by_name"
ISOLATED = "test_isolation.py::test_what_one_run_raises_or_computes_costs_no_other_a_bit"

# row: what tests it, as file::function, with one key of a table of that file in brackets.
COVERED: dict[str, list[str]] = {
    "D01": [f"{DATA}[D01 empty]", f"{DATA}[D01 blank]", f"{DATA}[D01 dropped]"],
    "D02": [f"{DATA}[D02]"],
    "D03": [f"{DATA}[D03]", "test_bad_inputs_data.py::test_columns_are_mapped_and_repeats_left_out_when_asked"],
    "D04": [ODD],
    "D05": [f"{DATA}[D05]"],
    "D06": [f"{DATA}[D06 NaN]", f"{DATA}[D06 infinity]", f"{DATA}[D06 overflow]"],
    "D07": [f"{DATA}[D07 number]", f"{DATA}[D07 bool]", f"{DATA}[D07 list]", f"{DATA}[D07 object]"],
    "D08": [f"{DATA}[D08]"],
    "D09": [f"{DATA}[D09]", "test_data_load.py::test_damaged_files"],
    "D10": [f"{DATA}[D10]"],
    "D11": [f"{DATA}[D11]"],
    "D12": [f"{DATA}[D12 NUL]", ODD],
    "D13": [f"{DATA}[D13]"],
    "D14": [f"{DATA}[D14]"],
    "D15": [f"{DATA}[D15 prompt]", f"{DATA}[D15 chosen]", f"{DATA}[D15 rejected]"],
    "D16": [f"{DATA}[D16 raw]", f"{DATA}[D16 NFC]",
            "test_data_load.py::test_three_kinds_of_equal_rows_are_counted_apart"],
    "D17": [f"{DATA}[D17]", ODD],
    "D18": [ODD, "test_data_load.py::test_duplicates_are_counted_and_dropped_on_request"],
    "D19": ["test_bad_inputs_data.py::test_d19_a_prompt_on_both_sides_is_a_leak"],
    "D20": [f"{DATA}[D20]"],
    "D21": [f"{DATA}[D21]", "test_data_tokenize.py::test_responses_equal_once_cut_are_refused_or_dropped"],
    "D22": [ODD, "test_data_tokenize.py::test_pad_equal_to_eos_takes_no_end_away"],
    "D23": [f"{DATA}[D23 role]", f"{DATA}[D23 content]", f"{DATA}[D23 list]"],
    "D24": [f"{DATA}[D24 first]", f"{DATA}[D24 twice]", f"{DATA}[D24 none]"],
    "D25": [f"{DATA}[D25]"],
    "D26": [ODD, "test_data_tokenize.py::test_chats_keep_their_shape_whatever_the_text"],
    "D27": [ODD, "test_data_tokenize.py::test_boundary_never_merges_and_is_counted"],
    "D28": [f"{DATA}[D28]"],
    "D29": ["test_data_load.py::test_memory_is_that_of_the_text_that_is_kept"],
    "D30": ["test_bad_inputs_data.py::test_d30_a_file_that_changes_meanwhile"],
    "D31": ["test_bad_inputs_data.py::test_d31_other_kinds_of_sources",
            "test_data_load.py::test_hub_datasets_that_could_run_code_are_refused"],
    "D32": [f"{DATA}[D32]"],
    "C01": [f"{FILE}[C01]", f"{OPTION}[C01]", "test_bad_inputs_config.py::test_c01_numbers_of_toml_are_numbers"],
    "C02": [f"{FILE}[C02 no]", f"{FILE}[C02 octal]", f"{FILE}[C02 time]", f"{FILE}[C02 bool]"],
    "C03": [f"{FILE}[C03]", f"{FILE}[C03 table]"],
    "C04": [f"{FILE}[C04]"],
    "C05": [f"{FILE}[C05 bomb]", f"{FILE}[C05 size]", f"{FILE}[C05 nest]", f"{FILE}[C05 depth]", f"{OPTION}[C05]"],
    "C06": [f"{FILE}[C06]", f"{FILE}[C06 variant]", f"{OPTION}[C06]", f"{OPTION}[C06 option]"],
    "C07": [f"{FILE}[C07 nan]", f"{FILE}[C07 negative]", f"{FILE}[C07 seed]", f"{OPTION}[C07 zero]"],
    "C08": ["test_bad_inputs_config.py::test_c08_names_that_leave_their_folder", f"{FILE}[C08 label]"],
    "C09": [f"{FILE}[C09]", f"{FILE}[C09 form]"],
    "C10": [f"{FILE}[C10]"],
    "C11": ["test_bad_inputs_config.py::test_c11_folder_that_is_a_link_elsewhere",
            "test_bad_inputs_config.py::test_c11_link_inside_the_folder",
            "test_bad_inputs_config.py::test_c11_folder_with_files_of_others"],
    "C12": [DIFFERS, "test_runner.py::test_another_setting_under_the_same_name_is_refused"],
    "C13": ["test_bad_inputs_config.py::test_c13_folder_of_a_newer_version"],
    "C14": [f"{PLUGIN}[C14 import]", f"{PLUGIN}[C14 clash]",
            "test_bad_inputs_config.py::test_c14_packages_load_only_when_named",
            "test_bad_inputs_config.py::test_c14_nothing_is_imported_from_the_working_folder"],
    "C15": [f"{PLUGIN}[C15 nan]", f"{PLUGIN}[C15 shape]", f"{PLUGIN}[C15 detached]", f"{PLUGIN}[C15 device]",
            f"{PLUGIN}[C15 mutates]"],
    "K01": [FAULTS, "test_comparison.py::test_killed_at_random_instants",
            "test_microbatch.py::test_a_signal_ends_the_step_and_is_kept"],
    "K02": [DAMAGE, ASIDE],
    "K03": [ASIDE],
    "K04": ["test_resume.py::test_a_planted_pickle_is_never_opened"],
    "K05": ["test_damage.py::test_damage_in_a_finished_folder",
            "test_results.py::test_a_run_is_complete_only_with_all_its_files_unchanged"],
    "K06": [FAULTS, "test_locks.py::test_a_disk_without_room_is_refused_before_any_training",
            "test_writer.py::test_a_full_disk_inside_a_library_is_a_refusal"],
    "K07": [FAULTS, "test_locks.py::test_a_disk_that_cannot_lock_is_named"],
    "K08": [FAULTS, "test_bad_inputs_folder.py::test_k08_leftovers_of_killed_processes_are_removed_and_no_others"],
    "K09": ["test_bad_inputs_folder.py::test_k09_checkpoints_are_ordered_by_step_whatever_the_clock_says"],
    "K10": ["test_damage.py::test_damage_in_the_cache"],
    "M01": [f"{MODEL}[M01 model]", f"{MODEL}[M01 tokenizer]",
            "test_bad_inputs_model.py::test_a_real_process_asks_nothing_and_runs_nothing"],
    "M02": [f"{MODEL}[M02]", f"{MODEL}[M02 none]"],
    "M03": ["test_bad_inputs_model.py::test_m03_hub_model_is_fetched_as_data_of_one_commit", DIFFERS],
    "M04": [f"{MODEL}[M04]", f"{MODEL}[M04 private]", "test_bad_inputs_model.py::test_m04_native_code_of_a_hub_is_off"],
    "M05": [f"{MODEL}[M05 end]", f"{MODEL}[M05 vocabulary]",
            "test_bad_inputs_model.py::test_m05_models_that_are_used_all_the_same"],
    "M06": ["test_bad_inputs_model.py::test_m06_hostile_template_is_bounded_and_named"],
    "M07": [f"{MODEL}[M07 NaN]", f"{MODEL}[M07 infinity]", f"{MODEL}[M07 overflow]"],
    "R01": [f"{ISOLATED}[nan]", f"{ISOLATED}[infinite]"],
    "R02": [f"{ISOLATED}[memory]", f"{ISOLATED}[cuda_memory]"],
    "R03": ["test_isolation.py::test_a_dying_process_costs_one_run[segfault]"],
    "R04": ["test_isolation.py::test_a_hung_process_is_ended_and_shows_where_it_hung"],
    "R05": [f"{DIFFERS}[device]"],
    "R06": ["test_locks.py::test_four_processes_train_each_run_once",
            "test_locks.py::test_the_second_process_is_told_who_is_there",
            "test_isolation.py::test_the_worker_ends_with_its_parent_and_the_folder_is_free_at_once"],
    "R07": ["test_logps.py::test_reference_is_computed_once_and_keyed_by_its_data"],
    "J01": ["test_judge_endpoint.py::test_retry_after_is_honoured",
            "test_judge_endpoint.py::test_absurd_retry_after_is_not",
            "test_judge_endpoint.py::test_retry_after_reads_numbers_and_dates"],
    "J02": ["test_judge_endpoint.py::test_what_passes_is_tried_again",
            "test_judge_failures.py::test_server_that_dies_ends_it_early_and_the_same_command_goes_on"],
    "J03": ["test_judge_endpoint.py::test_slow_drip_ends_at_the_deadline"],
    "J04": [f"{SERVER}[J04 key]", f"{SERVER}[J04 account]", f"{SERVER}[J04 model]"],
    "J05": ["test_judge_endpoint.py::test_unusable_replies_are_asked_for_once_more_then_counted",
            "test_bad_inputs_judge.py::test_j05_j07_replies_that_are_no_verdicts_are_counted_and_end_with_4"],
    "J06": ["test_replies.py::test_what_leaves_a_doubt_is_not_guessed_at", "test_fuzz.py::test_verdicts_in_text"],
    "J07": ["test_bad_inputs_judge.py::test_j05_j07_replies_that_are_no_verdicts_are_counted_and_end_with_4",
            "test_judges.py::test_unusable_verdicts_are_counted_and_bounded_and_asked_again"],
    "J08": ["test_bad_inputs_judge.py::test_j08_judged_text_cannot_end_its_frame_or_bring_control_tokens",
            "test_judges.py::test_controls_catch_bad_judges"],
    "J09": ["test_judges.py::test_taste_for_the_first_position_cancels_and_shows"],
    "J10": ["test_judge_endpoint.py::test_changed_model_is_flagged"],
    "J11": ["test_judges.py::test_verdicts_survive_a_judging_that_is_stopped"],
    "J12": [f"{SERVER}[J12 redirect]", "test_bad_inputs_judge.py::test_address_that_is_not_called"],
    "O01": ["test_report.py::test_hostile_text_stays_text", "test_fuzz.py::test_text_in_reports_stays_text"],
    "O02": ["test_report.py::test_the_page_loads_nothing_and_declares_so",
            "test_report_browser.py::test_no_console_message_no_request_and_no_injected_element"],
    "O03": ["test_report.py::test_names_that_matplotlib_would_swallow_are_drawn"],
    "O04": ["test_report.py::test_spreadsheet_cells_are_no_formulas",
            "test_report.py::test_tables_in_csv_keep_numbers_as_numbers"],
    "O05": ["test_report.py::test_markdown_is_escaped"],
    "O06": ["test_bad_inputs_judge.py::test_o06_terminals_are_not_driven"],
    "O07": ["test_secrets.py::test_no_secret_in_any_byte_that_comes_out",
            "test_secrets.py::test_secrets_that_were_typed_are_not_repeated"],
    "O08": ["test_secrets.py::test_no_secret_in_any_byte_that_comes_out"],
    "O09": ["test_results.py::test_not_a_number_is_never_written_as_json", ISOLATED],
    "O10": ["test_report.py::test_runs_that_did_not_finish_are_listed_and_not_ranked"],
    "S01": ["test_supply_chain.py::test_every_package_is_locked_by_hash",
            "test_supply_chain.py::test_known_vulnerabilities_fail_and_what_is_unknown_is_said"],
    "S03": ["test_architecture.py::test_nothing_unpickles_or_evaluates"],
}  # fmt: skip
NOT_APPLICABLE = {
    "S02": "no workflow of a hosted CI stands in the repository: .ci/run is two lines of make that any machine can run",
}


@cache
def parsed(file: str) -> ast.Module:
    (path,) = TESTS.rglob(file)  # names of test files are unique
    return ast.parse(path.read_text(encoding="utf-8"))


def test_every_row_of_the_list_is_accounted_for() -> None:
    rows = {f"{letter}{number:02}" for letter, size in SIZES.items() for number in range(1, size + 1)}
    assert len(rows) == 96
    assert COVERED.keys() | NOT_APPLICABLE.keys() == rows
    assert not COVERED.keys() & NOT_APPLICABLE.keys()
    assert all(len(reason) > 40 for reason in NOT_APPLICABLE.values())


@pytest.mark.parametrize("row", COVERED)
def test_the_tests_of_a_row_exist(row: str) -> None:
    assert COVERED[row]
    for entry in COVERED[row]:
        file, _, rest = entry.partition("::")
        name, _, key = rest.rstrip("]").partition("[")
        nodes = list(ast.walk(parsed(file)))
        assert name in {node.name for node in nodes if isinstance(node, ast.FunctionDef)}, entry
        assert not key or key in {node.value for node in nodes if isinstance(node, ast.Constant)}, entry


def test_what_does_not_apply_does_not() -> None:
    root = TESTS.parent
    assert not (root / ".github").exists()
    assert len((root / ".ci" / "run").read_text(encoding="utf-8").splitlines()) < 10
