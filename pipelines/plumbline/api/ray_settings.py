"""The environment that every process of Plumbline meets Ray with; the operator puts it into the Pods."""

SETTINGS: dict[str, str] = {
    # Train polls its workers this often; the default of 2 s delays every report and every failure by as much.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    # Our own driver looks for nodes that are about to go, without a process for it and sooner.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # On a busy machine Serve's proxy takes longer than the default to answer.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A process that asked for no GPU sees none; this is what later Ray versions do by default.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}

FAST_PROXY: dict[str, str] = {
    # Ray Serve's HAProxy hands each request to its replica at once; without it a Python process stands between.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # What a replica that dies has not begun to send, another one answers. Twice is not wrong: an answer changes nothing.
    # The second line is for want of a setting for it, as Serve writes this one into HAProxy's file as it is: only a request that was there as
    # a whole when it was passed on can be sent again, and clients often send the body after the head.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response\n    option http-buffer-request",
    # Only after three failures is a replica taken for dead; when it was the only one, the next try waits in Serve's own proxy for a new one.
    "RAY_SERVE_HAPROXY_RETRIES": "8",
    # Bytes of a request that can be sent again; for each connection, twice.
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "131072",
    # Whenever replicas come or go, a new HAProxy takes over, and the old one ends what it has begun: for as long as a request may last
    # (`admission.timeoutSeconds`, a day at most), and not for Serve's 120 s. Ports of replicas that went are free again after Serve's own
    # 150 s, and not after a day: an old HAProxy could send a request there again only if it is older than that and its own replica died.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "86400",
    "RAY_SERVE_PORT_QUARANTINE_S": "150",
}
"""Environment of a Ray cluster that serves, for all its processes."""

GROWS_TO = "PLUMBLINE_GROWS_TO"
"""Variable of the operator for the head Pod of an autoscaled cluster: the most that it can have, such as `{"CPU": 16, "GPU": 8}`."""

ROLLOUT = "rollout"
"""Name of the worker group that the operator keeps for rollout actors and the reward model, and of the Ray resource of its Pods, of
which each of those takes one. Training workers are not put there: Ray is told of no CPUs."""
