"""The fields of KubeRay's RayJob and of the pods in it that are documented, as strict models.

Written from KubeRay's API reference (ray.io/v1, operator 1.6) and Kubernetes' (core/v1): names and
types of all fields of RayJob, RayCluster and its groups, and of pods what a sweep has use for.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=63)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|[KMGT]i?)?$")]
Count = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class Resources(Strict):
    requests: dict[str, Quantity] = {}
    limits: dict[str, Quantity] = {}


class Capabilities(Strict):
    add: list[str] = []
    drop: list[str] = []


class ContainerSecurity(Strict):
    run_as_non_root: bool | None = None
    run_as_user: Count | None = None
    allow_privilege_escalation: bool | None = None
    read_only_root_filesystem: bool | None = None
    capabilities: Capabilities | None = None


class PodSecurity(Strict):
    run_as_non_root: bool | None = None
    run_as_user: Count | None = None
    run_as_group: Count | None = None
    fs_group: Count | None = None


class Port(Strict):
    container_port: Annotated[int, Field(gt=0, lt=65536)]
    name: Annotated[Name, Field(max_length=15)]


class Mount(Strict):
    name: Name
    mount_path: Annotated[str, Field(pattern="^/")]
    read_only: bool = False
    sub_path: str | None = None


class KeyOfSecret(Strict):
    name: Name
    key: str


class ValueFrom(Strict):
    secret_key_ref: KeyOfSecret


class Variable(Strict):
    name: str
    value: str | None = None
    value_from: ValueFrom | None = None


class Container(Strict):
    name: Name
    image: str
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    env: list[Variable] = []
    ports: list[Port] = []
    resources: Resources
    security_context: ContainerSecurity
    volume_mounts: list[Mount] = []


class ConfigMap(Strict):
    name: Name


class Claim(Strict):
    claim_name: Name
    read_only: bool = False


class EmptyDir(Strict):
    medium: Literal["", "Memory"] = ""
    size_limit: Quantity | None = None


class Volume(Strict):
    name: Name
    config_map: ConfigMap | None = None
    persistent_volume_claim: Claim | None = None
    empty_dir: EmptyDir | None = None


class Toleration(Strict):
    key: str
    operator: Literal["Exists", "Equal"]
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class PodSpec(Strict):
    service_account_name: Name | None = None
    node_selector: dict[str, str] = {}
    tolerations: list[Toleration] = []
    security_context: PodSecurity
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[Volume] = []


class Metadata(Strict):
    name: Name | None = None
    namespace: Name | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class PodTemplate(Strict):
    metadata: Metadata | None = None
    spec: PodSpec


class HeadGroup(Strict):
    service_type: str | None = None
    enable_ingress: bool | None = None
    labels: dict[str, str] = {}
    resources: dict[str, str] = {}
    ray_start_params: dict[str, str] = {}
    template: PodTemplate


class WorkerGroup(Strict):
    group_name: Name
    replicas: Count | None = None
    min_replicas: Count
    max_replicas: Count
    num_of_hosts: Count = 1
    idle_timeout_seconds: Count | None = None
    suspend: bool | None = None
    labels: dict[str, str] = {}
    resources: dict[str, str] = {}
    ray_start_params: dict[str, str] = {}
    template: PodTemplate


class AuthOptions(Strict):
    mode: Literal["disabled", "token"]
    secret_name: Name | None = None


class AutoscalerOptions(Strict):
    version: Literal["v1", "v2"] | None = None
    resources: Resources | None = None
    image: str | None = None
    idle_timeout_seconds: Count | None = None
    upscaling_mode: Literal["Default", "Aggressive", "Conservative"] | None = None
    env: list[Variable] = []


class RayClusterSpec(Strict):
    ray_version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    suspend: bool | None = None
    managed_by: str | None = None
    auth_options: AuthOptions
    enable_in_tree_autoscaling: bool | None = None
    autoscaler_options: AutoscalerOptions | None = None
    head_service_annotations: dict[str, str] = {}
    gcs_fault_tolerance_options: dict[str, Any] | None = None
    head_group_spec: HeadGroup
    worker_group_specs: list[WorkerGroup] = []


class SubmitterConfig(Strict):
    backoff_limit: Count | None = None


class RayJobSpec(Strict):
    entrypoint: str
    runtime_env_yaml: str | None = Field(None, alias="runtimeEnvYAML")
    job_id: str | None = None
    metadata: dict[str, str] = {}
    submission_mode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    submitter_config: SubmitterConfig | None = None
    submitter_pod_template: PodTemplate | None = None
    entrypoint_num_cpus: float | None = None
    entrypoint_num_gpus: float | None = None
    entrypoint_resources: str | None = None
    active_deadline_seconds: Annotated[int, Field(gt=0)] | None = None
    backoff_limit: Count = 0
    shutdown_after_job_finishes: bool = False
    ttl_seconds_after_finished: Count = 0
    suspend: bool | None = None
    cluster_selector: dict[str, str] = {}
    managed_by: str | None = None
    ray_cluster_spec: RayClusterSpec


class RayJob(Strict):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec
