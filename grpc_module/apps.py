from django.apps import AppConfig


class GrpcModuleConfig(AppConfig):
    name = "grpc_module"
    verbose_name = "gRPC"
