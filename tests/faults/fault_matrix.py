"""The faults that the project must survive, with what is expected and the tests that show it.

Expected: R, training resumes bit for bit from the last intact state; E, an error that says what is
wrong, and nothing is changed; W, a warning, and the right result.
"""

MATRIX = {
    "SIGKILL at any moment of a save, of training, preparation, recording or building: R": """
        core/training/test_checkpoint.py test_killed_while_saving
            test_a_crash_at_any_call_leaves_a_whole_folder_or_none
        core/training/test_train.py test_sigkill_at_random_moments
        core/training/test_async_writer.py test_a_signal_during_a_write_lets_it_finish
        faults/test_kills.py test_killed_jobs_end_with_the_same_result
        book/test_book.py test_after_a_killed_build_every_page_is_built_again
        book/test_killed.py test_killed_at_a_random_moment_it_goes_on_to_the_same_tables
        book/test_papermill_runs.py test_killed_at_random_moments_there_is_one_whole_run
    """,
    "SIGKILL between two renames: R": """
        core/training/test_checkpoint.py test_a_crash_at_any_call_leaves_a_whole_folder_or_none
        book/test_papermill_runs.py test_a_folder_is_replaced_whole_or_not_at_all
    """,
    "SIGTERM or SIGINT: R": """
        core/training/test_train.py test_a_signal_saves_then_stops
        test_terminal.py test_one_training_is_stopped_and_goes_on test_a_study_in_a_pipe
    """,
    # a run stops, because the checkpoints of a schedule must all exist
    "full disk: E, then R": """
        faults/test_training.py test_a_disk_that_fills_up_stops_training_and_loses_nothing
            test_a_small_disk_that_is_really_full
        core/training/test_checkpoint.py test_no_space_left
        core/data/test_prepare.py test_full_disk
        core/data/test_indexed_dataset.py test_full_disk_while_writing_leaves_nothing
        core/data/test_interventions.py test_a_full_disk_is_named
        core/util/test_files.py test_safetensors_on_a_full_disk_are_an_error_of_the_system
    """,
    "folder that becomes read-only or vanishes: E, then R": """
        faults/test_training.py test_a_folder_that_becomes_read_only
            test_a_folder_that_vanishes_is_not_made_again
    """,
    "truncated file: E or R": """
        core/training/test_checkpoint.py test_every_truncation_is_noticed
            test_if_the_newest_is_corrupt_the_next_is_loaded_with_a_warning
        core/data/test_prepare.py test_damaged_files_are_reported
    """,
    "flipped bit in any file: E or R": """
        faults/test_flips.py test_every_flip_is_refused_by_name_repaired_or_harmless
        core/training/test_checkpoint.py test_every_bit_flip_is_noticed
        core/training/test_completion.py test_every_entry_of_done_is_hashed
            test_a_changed_log_is_neither_read_nor_verified
            test_replays_are_verified_and_other_files_named
        core/test_hf.py
            test_every_changed_bit_of_a_saved_folder_gives_the_model_or_names_the_file
        book/test_records.py test_costs_cut_anywhere_or_changed_are_refused
    """,
    "missing, extra or swapped files: E": """
        core/training/test_checkpoint.py test_missing_extra_and_swapped_files_are_noticed
        core/training/test_completion.py test_a_checkpoint_of_another_run_is_found
            test_a_missing_file_is_named test_the_done_json_of_another_run_is_refused
            test_damage_is_not_sealed_by_finishing_the_run_again
    """,
    "other configuration in the same folder: E": """
        core/training/test_runs.py
            test_a_folder_of_another_run_is_refused_and_the_differing_keys_named
            test_any_change_of_the_config_gives_another_run
        core/training/test_train.py test_a_state_of_another_architecture_is_refused
    """,
    "other data, order or intervention: E": """
        core/training/test_runs.py test_a_run_whose_corpus_changed_is_refused
            test_any_change_of_the_config_gives_another_run
        core/data/test_interventions.py test_a_ledger_of_other_data_is_refused
    """,
    "other tokenizer: E": """
        faults/test_training.py test_a_tokenizer_that_changed_is_refused
        core/training/test_runs.py test_a_vocabulary_smaller_than_the_data_is_refused
    """,
    "other number of processes or threads, other machine: W": """
        core/training/test_sharding.py test_two_processes_train_like_one_whether_sharded_or_not
            test_two_then_four_on_two_nodes_then_one_resume_from_each_other
        faults/test_training.py test_a_resume_under_other_conditions_warns
        core/util/test_workers.py test_results_are_the_same_with_and_without_workers
    """,
    "loss or gradient that is not finite: E": """
        core/training/test_train.py test_nan_never_reaches_the_weights
            test_weights_that_are_not_finite_are_never_saved
        core/training/test_trainer.py test_updates_launched_after_a_failure_change_nothing
    """,
    # no update is skipped, because the models of the suite must stay comparable
    "spike of the loss: logged": """
        faults/test_training.py test_a_spike_is_logged_and_training_goes_on
    """,
    "overflow in fp16: R": """
        core/training/test_loss_scale.py test_an_overflow_changes_nothing_but_the_scale
            test_resumed_equals_uninterrupted test_a_batch_that_overflows_at_every_scale
    """,
    "no GPU, or out of memory: E": """
        core/training/test_trainer.py test_modes_are_checked
            test_out_of_memory_recommends_a_micro_batch
        book/tasks/test_harness.py test_arguments_are_checked_before_anything_is_measured
        faults/test_training.py test_a_worker_that_is_killed_is_an_error_not_a_hang
    """,
    "damaged or hostile index, header or archive: E": """
        core/data/test_indexed_dataset.py test_every_flipped_bit_of_the_index_is_found
            test_the_error_names_the_damaged_field
            test_every_dtype_of_tokens_is_read_and_every_other_one_refused
        book/released/test_index_maps.py
            test_every_flip_and_cut_of_the_index_gives_the_same_rows_or_an_error
            test_hostile_headers_of_npy_files_give_an_error
        book/released/test_neox_format.py test_what_a_file_of_a_rank_would_run_is_not_run
        core/test_hf.py test_every_changed_bit_of_a_safetensors_header_gives_the_model_or_an_error
    """,
    "truncated tokens, missing or unordered shards: E": """
        core/data/test_indexed_dataset.py test_truncated_and_extended_files_are_found
            test_a_shard_that_ends_inside_a_token_is_refused
        book/released/test_pile.py test_errors_name_what_is_missing
        book/released/test_continuation.py test_a_folder_may_hold_the_needed_shards_only
        book/released/test_download.py test_a_missing_shard_of_a_revision
        core/test_hf.py test_missing_and_truncated_shards
    """,
    "token id outside the vocabulary: E": """
        core/data/test_indexed_dataset.py test_ids_outside_the_vocabulary_are_refused
        core/training/test_train.py test_an_id_outside_the_vocabulary_is_refused
    """,
    "byte offsets above 2^31 and 2^32: right tokens": """
        core/data/test_indexed_dataset.py test_beyond_four_gigabytes
            test_shards_beyond_four_gigabytes
        book/released/test_index_maps.py test_documents_beyond_four_gigabytes
        book/released/test_pile.py test_the_released_document_index
    """,
    "text in bad UTF-8, with lone surrogates, NUL, BOM, CRLF or U+2028: E, or right text": """
        core/data/test_corpus.py test_files_and_folders
            test_a_nul_is_a_character_only_if_it_is_written_as_one
            test_bad_jsonl_is_named_by_file_and_line test_bad_text_files
    """,
    "empty documents, and documents of one token: counted": """
        core/data/test_indexed_dataset.py test_round_trip_with_empty_documents
        core/data/test_corpus.py test_files_and_folders
        core/data/test_order.py test_documents_of_one_token_or_only_eod
        core/data/test_prepare.py test_documents_of_one_token_are_kept
    """,
    "giant document: right tokens": """
        core/data/test_prepare.py test_giant_document
        core/data/test_order.py test_document_longer_than_everything
        core/data/test_indexed_dataset.py test_a_document_that_is_too_long_for_the_format_is_refused
    """,
    "text that contains <|endoftext|>: ordinary text": """
        core/data/test_tokenizer.py test_text_never_becomes_a_special_token
        core/data/test_prepare.py test_text_with_the_name_of_the_special_token
    """,
    "malformed JSON, truncated or inflated archives: E": """
        core/data/test_corpus.py test_bad_jsonl_is_named_by_file_and_line test_bad_text_files
            test_zstandard_files
        core/data/test_downloads.py test_tampered_cache_is_refused_and_left_alone
    """,
    "two processes on one run or job, one of them stopped or killed: R": """
        core/training/test_train.py test_a_second_process_waits_for_the_first
            test_a_stopped_process_leaves_the_run_to_the_one_that_took_it_over
        core/util/test_leases.py test_twenty_workers_race_for_a_hundred_jobs_and_some_are_killed
            test_clocks_that_differ_by_an_hour_do_not_matter
        core/data/test_sharded.py test_processes_share_the_tasks
        book/test_papermill_runs.py test_two_runs_at_once_are_kept_apart
    """,
    "a process of torchrun dies, a Slurm job is canceled, requeued or out of time: E or R": """
        core/training/test_distributed.py
            test_a_killed_process_or_a_stop_ends_all_and_training_resumes
        core/util/test_launch.py test_a_requeued_job_goes_on
            test_a_job_at_its_time_limit_saves_and_queues_again
            test_a_job_that_was_canceled_elsewhere_has_failed test_a_node_without_the_environment
        book/test_worker.py
            test_two_nodes_give_the_files_of_one_machine_though_one_worker_dies_and_one_is_requeued
        core/data/test_sharded.py test_killed_tasks
            test_the_other_workers_do_what_a_killed_one_leaves
            test_slurm_commands_and_jobs_that_end_early
    """,
    "clock that jumps, folder that was moved: R": """
        faults/test_training.py test_a_clock_that_jumps_and_a_folder_that_moves
            test_a_stopped_run_is_moved_and_goes_on
        book/released/test_continuation.py
            test_a_run_is_found_after_its_folder_of_results_was_moved
        core/training/test_runs.py test_a_renamed_folder_is_still_the_run
    """,
    "log torn by a kill: R": """
        core/training/test_train.py test_a_partial_metrics_line_is_dropped
        core/training/test_metrics.py test_rows_past_the_resumed_step_are_dropped
            test_a_damaged_line_is_named
        faults/test_training.py test_an_edited_log_of_a_stopped_run_is_refused
    """,
    "worker process that dies: E": """
        faults/test_training.py test_a_worker_that_is_killed_is_an_error_not_a_hang
    """,
    "process that hangs in a collective: E": """
        faults/test_training.py test_a_process_that_hangs_or_dies_ends_the_others
    """,
    "two processes that prepare one text, cache of another text: one prepares": """
        faults/test_training.py test_of_processes_that_need_the_same_tokens_one_makes_them
        core/data/test_prepare.py test_a_cache_of_another_text_is_refused
            test_fingerprint_depends_on_the_content_only
            test_corpus_that_changes_while_read
    """,
    "notebook cell that fails: E": """
        book/test_papermill_runs.py test_a_finished_run_survives_whatever_fails_or_only_looks
        book/test_records.py test_a_failed_run_is_never_shown
    """,
}
"""Maps each fault and what is expected to names of files under tests/, each before its tests."""
