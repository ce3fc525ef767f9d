# Sourced: take AILB's own settings out of the environment, so that what follows neither reaches a real provider or
# database that is exported in somebody's shell, nor depends on it. AILB_TEST_… variables are meant for tests, and stay.

for name in $(env | sed -n 's/^\([A-Z_0-9]*\)=.*/\1/p'); do
    case $name in
    AILB_TEST_*) ;;
    AILB_* | OPENAI_* | ANTHROPIC_* | OLLAMA_* | DATABASE_URL* | REDIS_URL* | CHROMA_URL* | ENABLE_* | HOST | HTTP_PORT | \
        GRPC_PORT | MODULE_ID | ROUTING_STRATEGY) unset "$name" ;;
    esac
done
