"""What of KubeRay's RayJob and of the pods in it a sweep has use for, as strict models.

Written after KubeRay 1.6.2: RayJobSpec, RayClusterSpec and what these hold (ray.io/v1), and the
rules by which the operator refuses a job; for pods after Kubernetes (core/v1). Not here, and so
refused: what no sweep needs (`deletionStrategy`, `gcsFaultToleranceOptions`), what KubeRay refuses
in a RayJob (`upgradeStrategy`, `enableK8sTokenAuth`) or sets itself (`suspend` of a worker group,
`scaleStrategy`), and jobs on a cluster that is there already (`clusterSelector`).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=63)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|[KMGT]i?)?$")]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[int, Field(gt=0, lt=2**31)]
PullPolicy = Literal["Always", "IfNotPresent", "Never"]
Manager = Literal["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"]


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
    image_pull_policy: PullPolicy | None = None
    env: list[Variable] = []
    ports: list[Port] = []
    resources: Resources = Resources()
    security_context: ContainerSecurity = ContainerSecurity()
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
    security_context: PodSecurity = PodSecurity()
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


class Group(Strict):
    labels: dict[str, str] = {}
    resources: dict[str, str] = {}
    ray_start_params: dict[str, str] = {}
    template: PodTemplate

    @model_validator(mode="after")
    def _says_everything_once(self) -> Self:
        if "labels" in self.ray_start_params:
            raise ValueError("labels are a field of the group, not of rayStartParams")
        if self.resources and self.ray_start_params.keys() & {
            "num-cpus",
            "num-gpus",
            "memory",
            "resources",
        }:
            raise ValueError("resources are given twice, also in rayStartParams")
        return self


class HeadGroup(Group):
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] | None = None
    enable_ingress: bool | None = None


class WorkerGroup(Group):
    group_name: Name
    replicas: Count = 0
    min_replicas: Count = 0
    max_replicas: Count = 2**31 - 1
    num_of_hosts: Count = 1
    idle_timeout_seconds: Count | None = None

    @model_validator(mode="after")
    def _has_a_range(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError("minReplicas is greater than maxReplicas")
        return self


class AuthOptions(Strict):
    mode: Literal["disabled", "token"] | None = None
    secret_name: Name | None = None


class AutoscalerOptions(Strict):
    version: Literal["v1", "v2"] | None = None
    resources: Resources | None = None
    image: str | None = None
    image_pull_policy: PullPolicy | None = None
    security_context: ContainerSecurity | None = None
    idle_timeout_seconds: Count | None = None
    upscaling_mode: Literal["Default", "Aggressive", "Conservative"] | None = None
    env: list[Variable] = []
    volume_mounts: list[Mount] = []


class RayClusterSpec(Strict):
    ray_version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")] | None = None
    suspend: bool | None = None
    managed_by: Manager | None = None
    auth_options: AuthOptions = AuthOptions()
    enable_in_tree_autoscaling: bool | None = None
    autoscaler_options: AutoscalerOptions = AutoscalerOptions()
    head_service_annotations: dict[str, str] = {}
    head_group_spec: HeadGroup
    worker_group_specs: list[WorkerGroup] = []

    @model_validator(mode="after")
    def _fits_the_version(self) -> Self:
        version = tuple(map(int, (self.ray_version or "0").split(".")))
        if self.auth_options.mode == "token" and version < (2, 52, 0):
            raise ValueError("a token needs a rayVersion of 2.52.0 or newer")
        own_timeouts = any(
            group.idle_timeout_seconds is not None for group in self.worker_group_specs
        )
        if own_timeouts and self.autoscaler_options.version != "v2":
            raise ValueError("idleTimeoutSeconds of a worker group needs version v2 of autoscaling")
        return self


class SubmitterConfig(Strict):
    backoff_limit: Count | None = None


class RayJobSpec(Strict):
    entrypoint: str
    runtime_env_yaml: str = Field("", alias="runtimeEnvYAML")
    job_id: str | None = None
    metadata: dict[str, str] = {}
    submission_mode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] = (
        "K8sJobMode"
    )
    submitter_config: SubmitterConfig | None = None
    submitter_pod_template: PodTemplate | None = None
    entrypoint_num_cpus: float | None = None
    entrypoint_num_gpus: float | None = None
    entrypoint_resources: str | None = None
    active_deadline_seconds: Positive | None = None
    pre_running_deadline_seconds: Positive | None = None
    backoff_limit: Count = 0
    shutdown_after_job_finishes: bool = False
    ttl_seconds_after_finished: Count = 0
    suspend: bool = False
    managed_by: Manager | None = None
    ray_cluster_spec: RayClusterSpec

    @model_validator(mode="after")
    def _is_taken_by_the_operator(self) -> Self:
        if not self.shutdown_after_job_finishes:
            if self.ttl_seconds_after_finished:
                raise ValueError("ttlSecondsAfterFinished needs shutdownAfterJobFinishes")
            if self.suspend:
                raise ValueError("suspend needs shutdownAfterJobFinishes")
        if self.submission_mode == "InteractiveMode" and self.backoff_limit:
            raise ValueError("backoffLimit does not go with the submissionMode InteractiveMode")
        if self.submission_mode == "SidecarMode" and (
            self.submitter_config or self.submitter_pod_template
        ):
            raise ValueError("the submissionMode SidecarMode has no submitter to set up")
        if not isinstance(yaml.safe_load(self.runtime_env_yaml), dict | None):
            raise ValueError("runtimeEnvYAML is no mapping")
        return self


class JobMetadata(Metadata):
    # With what KubeRay appends, the cluster's name must fit into the names of its services.
    name: Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]*[a-z0-9])?$", max_length=47)]


class RayJob(Strict):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: JobMetadata
    spec: RayJobSpec


#: The names of all fields in KubeRay's reference, the ones that are left out above too.
DOCUMENTED: dict[type[Strict], str] = {
    RayJobSpec: "activeDeadlineSeconds backoffLimit rayClusterSpec submitterPodTemplate metadata "
    "clusterSelector submitterConfig managedBy deletionStrategy entrypoint runtimeEnvYAML jobId "
    "submissionMode entrypointResources entrypointNumCpus entrypointNumGpus "
    "ttlSecondsAfterFinished preRunningDeadlineSeconds shutdownAfterJobFinishes suspend",
    SubmitterConfig: "backoffLimit",
    RayClusterSpec: "upgradeStrategy authOptions suspend managedBy autoscalerOptions "
    "headServiceAnnotations enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec "
    "rayVersion workerGroupSpecs",
    AuthOptions: "enableK8sTokenAuth secretName mode",
    AutoscalerOptions: "resources image imagePullPolicy securityContext idleTimeoutSeconds "
    "upscalingMode version env envFrom volumeMounts",
    HeadGroup: "template headService enableIngress resources labels rayStartParams serviceType",
    WorkerGroup: "suspend groupName replicas minReplicas maxReplicas idleTimeoutSeconds resources "
    "labels rayStartParams template scaleStrategy numOfHosts",
}
