/* A scripted upstream of three dialects: one thread, epoll, HTTP/1.1 keep-alive, loopback only.
 *
 * It exists so that what is measured is the server in front of it: every answer is assembled before the first
 * request, and answering costs little more than the writes themselves. Whatever the dialect, it says the same words
 * and counts the same tokens, so that answers can be compared across translations.
 *
 *   POST /v1/chat/completions   OpenAI's: a plain reply, or with "stream": true SSE in chunked encoding
 *   POST /v1/messages           Anthropic's, the same way; its events are named
 *   POST /api/chat              Ollama's, the same way; its stream is lines of JSON
 *   GET  /v1/models             one model
 *   POST /_bench?delay_us=N&coalesce=N   changes how the next streams are paced, answers 204
 *
 *   upstream [--port N] [--chunks N] [--delay-us N] [--coalesce N]
 *
 * With port 0 (the default) the kernel chooses; the port is printed on standard output, alone on its line.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum {
    READ_STEP = 65536,
    MAX_HEAD = 65536,
    MAX_BODY = 32 << 20, /* AILB refuses bodies over 20 MiB, so none that it forwards comes near */
    ID_LENGTH = 29,      /* what follows "chatcmpl-" in OpenAI's ids; here "msg_" too */
    STAMP_LENGTH = 16,
    PROMPT_TOKENS = 112,
    PLAIN_TOKENS = 6,
    MAX_EVENTS = 256,
};

/* Overwritten with a fresh one in every answer. */
#define ID "00000000000000000000000000000"
/* Overwritten in every chunk of OpenAI's with the moment it was sent: nanoseconds of CLOCK_MONOTONIC, in hexadecimal. */
#define STAMP "0000000000000000"
#define MODEL "gpt-4o-mini-2024-07-18"
#define CLAUDE "claude-haiku-4-5-20251001"
#define LLAMA "llama3.2"
#define FINGERPRINT "fp_" STAMP

static const char *WORDS[] = {
    "A",      " gateway", " stands",  " between", " an",     " organ", "isation", "'s",     " programs", " and",
    " its",   " models",  ",",        " counts",  " every",  " token", " that",   " passes", ",",       " and",
    " writes", " down",   " to",      " the",     " last",   " nano",  "-dollar", " what",   " it",      " cost.",
};
enum { WORD_COUNT = sizeof WORDS / sizeof *WORDS };
#define PLAIN_TEXT "It keeps the ledger."

/* Bytes that can be sent as they are once a fresh id is written at `id_at` and the time at `stamp_at`; 0 where they
 * hold none. */
struct piece {
    char *bytes;
    size_t length;
    size_t id_at, stamp_at;
};

/* A stream, ready to send: its head is in front of the first piece, its end behind the last. */
struct script {
    struct piece *pieces;
    int count;
};

struct connection {
    int fd;
    char *in;
    size_t in_length, in_capacity;
    char *out;
    size_t out_length, out_sent, out_capacity;
    const struct script *script; /* the stream being sent, or NULL */
    int next_piece;
    uint64_t due_ns; /* when the next piece may go, in a paced stream */
    struct connection *next_waiting, *previous_waiting;
    bool waiting, wants_write, close_after;
    char id[ID_LENGTH];
    struct connection *next_dead;
};

static int epoll_fd, timer_fd;
static uint64_t delay_ns;
static int coalesce = 1;
static struct script openai_with_usage, openai_without_usage, anthropic_stream, ollama_stream;
static struct piece openai_plain, anthropic_plain, ollama_plain;
static char *models;
static size_t models_length;
/* Every paced stream waits equally long, so first in is first due: a list is the whole timer wheel. */
static struct connection *waiting_head, *waiting_tail;
/* Closed in this round of events; freed after it, because a later event of the round may still name them. */
static struct connection *dead;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void *must(void *pointer) {
    if (!pointer) die("memory");
    return pointer;
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- the answers, assembled once ---- */

static struct piece piece_of(const char *head, const char *body, const char *tail) {
    struct piece piece;
    piece.length = strlen(head) + strlen(body) + strlen(tail);
    piece.bytes = must(malloc(piece.length + 1));
    sprintf(piece.bytes, "%s%s%s", head, body, tail);
    char *id = strstr(piece.bytes, ID);
    piece.id_at = id ? (size_t)(id - piece.bytes) : 0;
    char *stamp = strstr(piece.bytes, "\"" FINGERPRINT "\"");
    piece.stamp_at = stamp ? (size_t)(stamp - piece.bytes) + strlen("\"fp_") : 0;
    return piece;
}

static struct piece plain_piece(const char *headers, const char *body) {
    char head[256];
    snprintf(head, sizeof head,
             "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%sContent-Length: %zu\r\n\r\n", headers,
             strlen(body));
    return piece_of(head, body, "");
}

#define STREAM_HEAD(type, headers) \
    "HTTP/1.1 200 OK\r\nContent-Type: " type "\r\n" headers "Transfer-Encoding: chunked\r\n\r\n"
#define STREAM_TAIL "0\r\n\r\n"

static struct script empty_script(int most) {
    return (struct script){must(calloc((size_t)most, sizeof(struct piece))), 0};
}

/* Adds one HTTP chunk to a stream. */
static void add(struct script *script, const char *head, const char *text, const char *tail) {
    char framed[1200];
    snprintf(framed, sizeof framed, "%zx\r\n%s\r\n", strlen(text), text);
    script->pieces[script->count++] = piece_of(head, framed, tail);
}

/* -- OpenAI's */

#define USAGE(tokens) \
    "{\"prompt_tokens\":%d,\"completion_tokens\":" tokens ",\"total_tokens\":%d," \
    "\"prompt_tokens_details\":{\"cached_tokens\":0,\"audio_tokens\":0}," \
    "\"completion_tokens_details\":{\"reasoning_tokens\":0,\"audio_tokens\":0," \
    "\"accepted_prediction_tokens\":0,\"rejected_prediction_tokens\":0}}"

/* `choices` is the inside of the list, `usage` a whole member. */
static void add_chunk(struct script *script, const char *head, const char *choices, const char *usage,
                      const char *tail, long created) {
    char event[1024];
    snprintf(event, sizeof event,
             "data: {\"id\":\"chatcmpl-" ID "\",\"object\":\"chat.completion.chunk\",\"created\":%ld,"
             "\"model\":\"" MODEL "\",\"service_tier\":\"default\",\"system_fingerprint\":\"" FINGERPRINT "\","
             "\"choices\":[%s]%s}\n\n",
             created, choices, usage);
    add(script, head, event, tail);
}

static struct script make_openai_stream(int chunks, bool usage, long created) {
    const char *head =
        STREAM_HEAD("text/event-stream; charset=utf-8",
                    "Cache-Control: no-cache\r\nopenai-processing-ms: 12\r\nx-request-id: req_bench\r\n");
    const char *done = "e\r\ndata: [DONE]\n\n\r\n" STREAM_TAIL;
    const char *no_usage = usage ? ",\"usage\":null" : "";
    struct script script = empty_script(chunks + 2);
    char choice[256], total[512];
    for (int i = 0; i < chunks; i++) {
        snprintf(choice, sizeof choice,
                 "{\"index\":0,\"delta\":{%s\"content\":\"%s\"%s},\"logprobs\":null,\"finish_reason\":null}",
                 i ? "" : "\"role\":\"assistant\",", WORDS[i % WORD_COUNT], i ? "" : ",\"refusal\":null");
        add_chunk(&script, i ? "" : head, choice, no_usage, "", created);
    }
    add_chunk(&script, "", "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}", no_usage,
              usage ? "" : done, created);
    if (usage) {
        snprintf(total, sizeof total, ",\"usage\":" USAGE("%d"), PROMPT_TOKENS, chunks, PROMPT_TOKENS + chunks);
        add_chunk(&script, "", "", total, done, created);
    }
    return script;
}

static struct piece make_openai_plain(long created) {
    char body[1024];
    snprintf(body, sizeof body,
             "{\"id\":\"chatcmpl-" ID "\",\"object\":\"chat.completion\",\"created\":%ld,\"model\":\"" MODEL "\","
             "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"" PLAIN_TEXT "\","
             "\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"stop\"}],"
             "\"usage\":" USAGE("%d") ",\"system_fingerprint\":\"" FINGERPRINT "\"}",
             created, PROMPT_TOKENS, PLAIN_TOKENS, PROMPT_TOKENS + PLAIN_TOKENS);
    return plain_piece("openai-processing-ms: 12\r\nx-request-id: req_bench\r\n", body);
}

/* -- Anthropic's */

#define MESSAGE_START \
    "{\"id\":\"msg_" ID "\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"" CLAUDE "\","
#define INPUT_TOKENS "\"input_tokens\":%d,\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":0"

/* `members` follow the event's type. */
static void add_event(struct script *script, const char *head, const char *name, const char *members,
                      const char *tail) {
    char event[1024];
    snprintf(event, sizeof event, "event: %s\ndata: {\"type\":\"%s\"%s}\n\n", name, name, members);
    add(script, head, event, tail);
}

static struct script make_anthropic_stream(int chunks) {
    const char *head =
        STREAM_HEAD("text/event-stream; charset=utf-8", "Cache-Control: no-cache\r\nrequest-id: req_bench\r\n");
    struct script script = empty_script(chunks + 5);
    char members[512];
    snprintf(members, sizeof members,
             ",\"message\":" MESSAGE_START "\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,"
             "\"usage\":{" INPUT_TOKENS ",\"output_tokens\":1,\"service_tier\":\"standard\"}}",
             PROMPT_TOKENS);
    add_event(&script, head, "message_start", members, "");
    add_event(&script, "", "content_block_start",
              ",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}", "");
    for (int i = 0; i < chunks; i++) {
        snprintf(members, sizeof members, ",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"%s\"}",
                 WORDS[i % WORD_COUNT]);
        add_event(&script, "", "content_block_delta", members, "");
    }
    add_event(&script, "", "content_block_stop", ",\"index\":0", "");
    snprintf(members, sizeof members,
             ",\"delta\":{\"stop_reason\":\"end_turn\",\"stop_sequence\":null},"
             "\"usage\":{" INPUT_TOKENS ",\"output_tokens\":%d}",
             PROMPT_TOKENS, chunks);
    add_event(&script, "", "message_delta", members, "");
    add_event(&script, "", "message_stop", "", STREAM_TAIL);
    return script;
}

static struct piece make_anthropic_plain(void) {
    char body[1024];
    snprintf(body, sizeof body,
             MESSAGE_START "\"content\":[{\"type\":\"text\",\"text\":\"" PLAIN_TEXT "\"}],\"stop_reason\":\"end_turn\","
             "\"stop_sequence\":null,\"usage\":{" INPUT_TOKENS ",\"output_tokens\":%d,\"service_tier\":\"standard\"}}",
             PROMPT_TOKENS, PLAIN_TOKENS);
    return plain_piece("request-id: req_bench\r\n", body);
}

/* -- Ollama's */

#define LINE "{\"model\":\"" LLAMA "\",\"created_at\":\"%s\",\"message\":{\"role\":\"assistant\",\"content\":\"%s\"}"
#define DONE \
    ",\"done\":true,\"done_reason\":\"stop\",\"total_duration\":612345678,\"load_duration\":12345678," \
    "\"prompt_eval_count\":%d,\"prompt_eval_duration\":100000000,\"eval_count\":%d,\"eval_duration\":500000000}"

static struct script make_ollama_stream(int chunks, const char *created) {
    struct script script = empty_script(chunks + 1);
    char line[512];
    for (int i = 0; i < chunks; i++) {
        snprintf(line, sizeof line, LINE ",\"done\":false}\n", created, WORDS[i % WORD_COUNT]);
        add(&script, i ? "" : STREAM_HEAD("application/x-ndjson", ""), line, "");
    }
    snprintf(line, sizeof line, LINE DONE "\n", created, "", PROMPT_TOKENS, chunks);
    add(&script, "", line, STREAM_TAIL);
    return script;
}

static struct piece make_ollama_plain(const char *created) {
    char body[512];
    snprintf(body, sizeof body, LINE DONE, created, PLAIN_TEXT, PROMPT_TOKENS, PLAIN_TOKENS);
    return plain_piece("", body);
}

static void make_answers(int chunks, long created) {
    char stamp[64];
    strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S.123456Z", gmtime(&created));
    openai_with_usage = make_openai_stream(chunks, true, created);
    openai_without_usage = make_openai_stream(chunks, false, created);
    openai_plain = make_openai_plain(created);
    anthropic_stream = make_anthropic_stream(chunks);
    anthropic_plain = make_anthropic_plain();
    ollama_stream = make_ollama_stream(chunks, stamp);
    ollama_plain = make_ollama_plain(stamp);
}

static void make_models(long created) {
    char body[512];
    snprintf(body, sizeof body,
             "{\"object\":\"list\",\"data\":[{\"id\":\"gpt-4o-mini\",\"object\":\"model\",\"created\":%ld,"
             "\"owned_by\":\"system\"}]}",
             created);
    int length = asprintf(&models, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                          strlen(body), body);
    if (length < 0) die("memory");
    models_length = (size_t)length;
}

/* ---- sending ---- */

static void append(struct connection *c, const char *bytes, size_t length) {
    if (c->out_length + length > c->out_capacity) {
        c->out_capacity = 2 * (c->out_length + length);
        c->out = must(realloc(c->out, c->out_capacity));
    }
    memcpy(c->out + c->out_length, bytes, length);
    c->out_length += length;
}

static void append_text(struct connection *c, const char *text) { append(c, text, strlen(text)); }

static void append_piece(struct connection *c, const struct piece *piece) {
    append(c, piece->bytes, piece->length);
    char *copy = c->out + c->out_length - piece->length;
    if (piece->id_at) memcpy(copy + piece->id_at, c->id, ID_LENGTH);
    if (piece->stamp_at) {
        uint64_t now = now_ns();
        for (int i = STAMP_LENGTH - 1; i >= 0; i--, now >>= 4) copy[piece->stamp_at + i] = "0123456789abcdef"[now & 15];
    }
}

static void fresh_id(struct connection *c) {
    static uint64_t counter;
    static const char digits[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    uint64_t value = ++counter;
    memcpy(c->id, "BenchUpstreamReply00000000000", ID_LENGTH);
    for (int i = ID_LENGTH - 1; value; i--, value /= 62) c->id[i] = digits[value % 62];
}

static void arm_timer(void) {
    struct itimerspec when = {0};
    if (waiting_head) {
        when.it_value.tv_sec = (time_t)(waiting_head->due_ns / 1000000000u);
        when.it_value.tv_nsec = (long)(waiting_head->due_ns % 1000000000u);
    }
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

static void wait_for_turn(struct connection *c) {
    c->waiting = true;
    c->next_waiting = NULL;
    c->previous_waiting = waiting_tail;
    if (waiting_tail)
        waiting_tail->next_waiting = c;
    else
        waiting_head = c;
    waiting_tail = c;
    if (waiting_head == c) arm_timer();
}

static void stop_waiting(struct connection *c) {
    if (!c->waiting) return;
    c->waiting = false;
    if (c->previous_waiting)
        c->previous_waiting->next_waiting = c->next_waiting;
    else
        waiting_head = c->next_waiting;
    if (c->next_waiting)
        c->next_waiting->previous_waiting = c->previous_waiting;
    else
        waiting_tail = c->previous_waiting;
}

static void close_connection(struct connection *c) {
    if (c->fd < 0) return;
    stop_waiting(c);
    close(c->fd);
    c->fd = -1;
    c->next_dead = dead;
    dead = c;
}

static void watch(struct connection *c, bool write) {
    if (c->wants_write == write) return;
    c->wants_write = write;
    struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | (write ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
}

/* Sends what is buffered. True when all of it has gone; false when the socket is full or dead. */
static bool flush(struct connection *c) {
    while (c->out_sent < c->out_length) {
        ssize_t n = send(c->fd, c->out + c->out_sent, c->out_length - c->out_sent, MSG_NOSIGNAL);
        if (n >= 0) {
            c->out_sent += (size_t)n;
        } else if (errno == EAGAIN) {
            watch(c, true);
            return false;
        } else if (errno != EINTR) {
            close_connection(c);
            return false;
        }
    }
    c->out_length = c->out_sent = 0;
    watch(c, false);
    return true;
}

/* Carries the answer on as far as the socket and the pacing allow. True when the answer has gone whole. */
static bool carry_on(struct connection *c) {
    while (flush(c)) {
        if (!c->script) return true;
        if (delay_ns && c->next_piece > 0) {
            if (!c->due_ns) c->due_ns = now_ns() + delay_ns;
            if (now_ns() < c->due_ns) {
                if (!c->waiting) wait_for_turn(c);
                return false;
            }
            stop_waiting(c);
        }
        c->due_ns = 0;
        for (int i = 0; i < coalesce && c->next_piece < c->script->count; i++)
            append_piece(c, &c->script->pieces[c->next_piece++]);
        if (c->next_piece == c->script->count) c->script = NULL;
    }
    return false;
}

/* ---- requests ---- */

struct request {
    const char *method, *path;
    size_t method_length, path_length;
    char *body;
    size_t body_length;
    size_t used; /* bytes of the input that this request took */
};

/* The value of a header, or NULL. `head` ends with its blank line. */
static const char *header(const char *head, const char *end, const char *name) {
    size_t length = strlen(name);
    for (const char *line = head; line < end;) {
        const char *stop = memmem(line, (size_t)(end - line), "\r\n", 2);
        if (!stop || stop == line) return NULL;
        if ((size_t)(stop - line) > length && line[length] == ':' && !strncasecmp(line, name, length)) {
            const char *value = line + length + 1;
            while (*value == ' ' || *value == '\t') value++;
            return value;
        }
        line = stop + 2;
    }
    return NULL;
}

enum parsed { INCOMPLETE, COMPLETE, MALFORMED };

/* Unpacks a chunked body over itself, but only once its end is there: until then the input stays untouched. */
static enum parsed chunked_body(char *start, char *end, struct request *r, char **after) {
    for (int pass = 0; pass < 2; pass++) {
        char *at = start, *to = start;
        for (;;) {
            char *line_end = memmem(at, (size_t)(end - at), "\r\n", 2);
            if (!line_end) return end - at > 1024 ? MALFORMED : INCOMPLETE;
            char *digits_end;
            unsigned long size = strtoul(at, &digits_end, 16);
            if (digits_end == at || size > MAX_BODY) return MALFORMED;
            at = line_end + 2;
            if (size == 0) {
                for (;;) { /* trailers, up to the blank line */
                    char *stop = memmem(at, (size_t)(end - at), "\r\n", 2);
                    if (!stop) return INCOMPLETE;
                    bool blank = stop == at;
                    at = stop + 2;
                    if (blank) break;
                }
                break;
            }
            if ((size_t)(end - at) < size + 2) return INCOMPLETE;
            if (pass) memmove(to, at, size);
            to += size;
            at += size + 2;
        }
        r->body_length = (size_t)(to - start);
        *after = at;
    }
    return COMPLETE;
}

static enum parsed parse(struct connection *c, struct request *r) {
    /* `in` always has room for a NUL behind its end: strtoul and header() may then look at any byte. */
    c->in[c->in_length] = 0;
    char *head_end = memmem(c->in, c->in_length, "\r\n\r\n", 4);
    if (!head_end) return c->in_length > MAX_HEAD ? MALFORMED : INCOMPLETE;
    char *body = head_end + 4, *end = c->in + c->in_length;
    char *space = memchr(c->in, ' ', (size_t)(head_end - c->in));
    char *second = space ? memchr(space + 1, ' ', (size_t)(head_end - space - 1)) : NULL;
    char *first_header = memmem(c->in, (size_t)(body - c->in), "\r\n", 2);
    if (!second || second > first_header) return MALFORMED;
    first_header += 2;
    r->method = c->in, r->method_length = (size_t)(space - c->in);
    r->path = space + 1, r->path_length = (size_t)(second - space - 1);
    r->body = body;
    const char *encoding = header(first_header, body, "transfer-encoding");
    const char *length = header(first_header, body, "content-length");
    const char *connection = header(first_header, body, "connection");
    c->close_after = connection && !strncasecmp(connection, "close", 5);
    enum parsed result = COMPLETE;
    char *after = body;
    r->body_length = 0;
    if (encoding && !strncasecmp(encoding, "chunked", 7)) {
        result = chunked_body(body, end, r, &after);
    } else if (length) {
        r->body_length = strtoul(length, NULL, 10);
        if (r->body_length > MAX_BODY) return MALFORMED;
        after = body + r->body_length;
        if (r->body_length > (size_t)(end - body)) result = INCOMPLETE;
    }
    r->used = (size_t)(after - c->in);
    if (result == INCOMPLETE && body == end && header(first_header, body, "expect"))
        append_text(c, "HTTP/1.1 100 Continue\r\n\r\n");
    return result;
}

/* Whether `"name": true` stands in the body. A quoted look-alike inside a string has its quotes escaped, so a
 * search that includes the quotes cannot meet it. */
static bool is_true(const struct request *r, const char *quoted_name) {
    const char *end = r->body + r->body_length;
    const char *at = memmem(r->body, r->body_length, quoted_name, strlen(quoted_name));
    if (!at) return false;
    at += strlen(quoted_name);
    while (at < end && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t' || *at == ':')) at++;
    return end - at >= 4 && !memcmp(at, "true", 4);
}

static bool is(const char *text, size_t length, const char *expected) {
    return length == strlen(expected) && !memcmp(text, expected, length);
}

static void change_pacing(const struct request *r) {
    /* Both numbers end at a byte that is no digit: '&', or the space behind the path. */
    const char *delay = memmem(r->path, r->path_length, "delay_us=", 9);
    const char *together = memmem(r->path, r->path_length, "coalesce=", 9);
    if (delay) delay_ns = strtoull(delay + 9, NULL, 10) * 1000u;
    if (together) coalesce = atoi(together + 9) > 0 ? atoi(together + 9) : 1;
}

static void reply(struct connection *c, const struct request *r, const struct piece *plain,
                  const struct script *stream) {
    fresh_id(c);
    if (!is_true(r, "\"stream\"")) {
        append_piece(c, plain);
        return;
    }
    c->script = stream;
    c->next_piece = 0;
    c->due_ns = 0;
}

static void answer(struct connection *c, const struct request *r) {
    bool post = is(r->method, r->method_length, "POST");
    if (post && is(r->path, r->path_length, "/v1/chat/completions")) {
        reply(c, r, &openai_plain, is_true(r, "\"include_usage\"") ? &openai_with_usage : &openai_without_usage);
    } else if (post && is(r->path, r->path_length, "/v1/messages")) {
        reply(c, r, &anthropic_plain, &anthropic_stream);
    } else if (post && is(r->path, r->path_length, "/api/chat")) {
        reply(c, r, &ollama_plain, &ollama_stream);
    } else if (!post && is(r->path, r->path_length, "/v1/models")) {
        append(c, models, models_length);
    } else if (post && r->path_length > 7 && !memcmp(r->path, "/_bench", 7)) {
        change_pacing(r);
        append_text(c, "HTTP/1.1 204 No Content\r\n\r\n");
    } else {
        append_text(c, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    }
}

/* Answers what has come in, one request after the other, as far as it goes. */
static void serve(struct connection *c) {
    while (c->fd >= 0 && carry_on(c)) {
        if (c->close_after) {
            close_connection(c);
            return;
        }
        if (!c->in_length) return;
        struct request r;
        enum parsed result = parse(c, &r);
        if (result == INCOMPLETE) {
            flush(c); /* perhaps a 100 Continue */
            return;
        }
        if (result == MALFORMED) {
            append_text(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            c->close_after = true;
            continue;
        }
        answer(c, &r);
        c->in_length -= r.used;
        memmove(c->in, c->in + r.used, c->in_length);
    }
}

static void receive(struct connection *c) {
    for (;;) {
        if (c->in_length + READ_STEP + 1 > c->in_capacity) {
            c->in_capacity = 2 * (c->in_length + READ_STEP + 1);
            c->in = must(realloc(c->in, c->in_capacity));
        }
        ssize_t n = recv(c->fd, c->in + c->in_length, READ_STEP, 0);
        if (n > 0) {
            c->in_length += (size_t)n;
            if (c->in_length > MAX_HEAD + (size_t)MAX_BODY) return close_connection(c);
            if (n < READ_STEP) return;
        } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
            return close_connection(c);
        } else if (errno == EAGAIN) {
            return;
        }
    }
}

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct connection *c = must(calloc(1, sizeof *c));
        c->fd = fd;
        struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = c};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e)) die("epoll_ctl");
    }
}

static void on_timer(void) {
    uint64_t expirations, now = now_ns();
    if (read(timer_fd, &expirations, sizeof expirations) < 0 && errno != EAGAIN) die("timerfd");
    while (waiting_head && waiting_head->due_ns <= now) {
        struct connection *c = waiting_head;
        stop_waiting(c);
        serve(c);
    }
    arm_timer();
}

static void bury_the_dead(void) {
    while (dead) {
        struct connection *c = dead;
        dead = c->next_dead;
        free(c->in);
        free(c->out);
        free(c);
    }
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0) die("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 1024)) die("listen");
    socklen_t length = sizeof address;
    getsockname(fd, (struct sockaddr *)&address, &length);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

static long option(int argc, char **argv, const char *name, long otherwise) {
    for (int i = 1; i + 1 < argc; i += 2)
        if (!strcmp(argv[i], name)) return strtol(argv[i + 1], NULL, 10);
    return otherwise;
}

int main(int argc, char **argv) {
    long created = (long)time(NULL);
    int chunks = (int)option(argc, argv, "--chunks", 30);
    if (chunks < 1) chunks = 1;
    delay_ns = (uint64_t)option(argc, argv, "--delay-us", 0) * 1000u;
    coalesce = (int)option(argc, argv, "--coalesce", 1);
    if (coalesce < 1) coalesce = 1;
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* never outlives the run that started it */
    make_answers(chunks, created);
    make_models(created);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    int listener = listen_on((int)option(argc, argv, "--port", 0));
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = &listener};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &e)) die("epoll_ctl");
    e.data.ptr = &timer_fd;
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &e)) die("epoll_ctl");
    for (;;) {
        struct epoll_event events[MAX_EVENTS];
        int count = epoll_wait(epoll_fd, events, MAX_EVENTS, -1);
        if (count < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr == &listener) {
                accept_all(listener);
            } else if (events[i].data.ptr == &timer_fd) {
                on_timer();
            } else {
                struct connection *c = events[i].data.ptr;
                if (c->fd >= 0 && events[i].events & EPOLLIN) receive(c);
                if (c->fd >= 0 && events[i].events & (EPOLLHUP | EPOLLERR)) close_connection(c);
                if (c->fd >= 0) serve(c);
            }
        }
        bury_the_dead();
    }
}
