/* A load generator for one HTTP/1.1 server on loopback: one thread, epoll, keep-alive, the same request each time.
 *
 *   load --port P --path /v1/... --requests M --connections N [--header "Name: value"]... [--body TEXT]
 *        [--rate R] [--ending TEXT] [--events E] [--timeout-s T]
 *
 * Without --rate the loop is closed: each connection sends its next request when the last answer is whole. With
 * --rate it is open: request i is due at start + i/R whether or not the server keeps up, and its latency counts
 * from then, so a stall is seen by every request it delays and not only by the ones in flight.
 *
 * An answer counts when its status is 200 and all of its body came, by its own Content-Length or last chunk. With
 * --ending it must also hold that text (a stream's "data: [DONE]"), with --events exactly that many "data:" lines.
 * Prints one JSON object; times in it are microseconds unless their name says otherwise.
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
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { READ_STEP = 65536, HEAD_LIMIT = 32768, MAX_EVENTS = 256, GIVE_UP_AFTER = 100 };

enum state { IDLE, HEAD, BODY_LENGTH, BODY_UNTIL_CLOSE, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER };

enum failure { BAD_STATUS, SHORT, NO_ENDING, WRONG_EVENTS, TIMEOUT, CONNECT, MALFORMED, FAILURES };
static const char *FAILURE_NAMES[FAILURES] = {"status",  "short",   "no_ending",  "wrong_events",
                                              "timeout", "connect", "malformed"};

struct connection {
    int fd;
    enum state state;
    size_t sent;
    uint64_t began_ns, first_body_ns;
    int status;
    bool close_after;
    uint64_t left; /* bytes of the body or chunk still to come */
    char line[HEAD_LIMIT];
    size_t line_length; /* the head, a chunk's size line or a trailer, as far as it has come */
    char *body;
    size_t body_length, body_capacity;
};

static struct {
    int port, connections, events;
    long requests;
    double rate, timeout_s;
    const char *path, *body, *ending;
    char *request;
    size_t request_length;
} options = {.connections = 1, .requests = 1, .timeout_s = 30, .path = "/", .body = ""};

static struct connection *connections;
/* Last in, first out: few connections stay busy and the rest sleep, as in a client's pool. */
static struct connection **idle;
static int idle_count;
static int epoll_fd, timer_fd;
static uint64_t start_ns;
static long issued, completed, failed, failures[FAILURES];
static uint64_t *latency_ns, *first_ns, body_bytes;
static int connect_failures;
static char sample[512]; /* of the first failure, for the person who reads the result */

static void die(const char *what) {
    perror(what);
    exit(2);
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

/* ---- connections ---- */

static void watch(struct connection *c, uint32_t events, int how) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    epoll_ctl(epoll_fd, how, c->fd, &e);
}

static bool open_connection(struct connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options.port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    struct timeval patience = {.tv_sec = 5};
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience); /* bounds connect() too */
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) {
        close(c->fd);
        c->fd = -1;
        connect_failures++;
        return false;
    }
    connect_failures = 0;
    watch(c, EPOLLIN, EPOLL_CTL_ADD);
    return true;
}

static void drop_connection(struct connection *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
}

static void rest(struct connection *c) {
    c->state = IDLE;
    idle[idle_count++] = c;
}

static void record_failure(enum failure why, int status, const char *detail, size_t length) {
    if (!failed)
        snprintf(sample, sizeof sample, "status %d: %.*s", status, (int)(length > 400 ? 400 : length), detail);
    failed++;
    failures[why]++;
}

static void fail(struct connection *c, enum failure why) {
    if (c->body_length)
        record_failure(why, c->status, c->body, c->body_length);
    else
        record_failure(why, c->status, c->line, c->line_length);
    drop_connection(c);
    rest(c);
}

static void push(struct connection *c) {
    while (c->sent < options.request_length) {
        ssize_t n = send(c->fd, options.request + c->sent, options.request_length - c->sent,
                         MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0) {
            c->sent += (size_t)n;
        } else if (errno == EAGAIN) {
            watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
            return;
        } else if (errno != EINTR) {
            fail(c, SHORT);
            return;
        }
    }
}

static void begin(struct connection *c, uint64_t due_ns) {
    issued++;
    c->sent = c->line_length = c->body_length = 0;
    c->status = 0;
    c->close_after = false;
    c->first_body_ns = 0;
    c->state = HEAD;
    c->began_ns = due_ns;
    if (c->fd < 0 && !open_connection(c)) {
        fail(c, CONNECT);
        return;
    }
    push(c);
}

/* Sends every request that is due and finds a connection free. */
static void feed(void) {
    while (issued < options.requests && idle_count) {
        uint64_t now = now_ns(), due = now;
        if (connect_failures >= GIVE_UP_AFTER) {
            failures[CONNECT] += options.requests - issued;
            failed += options.requests - issued;
            issued = options.requests;
            return;
        }
        if (options.rate > 0) {
            due = start_ns + (uint64_t)((double)issued * 1e9 / options.rate);
            if (due > now) {
                struct itimerspec when = {.it_value = {(time_t)(due / 1000000000u), (long)(due % 1000000000u)}};
                timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
                return;
            }
        }
        begin(idle[--idle_count], due);
    }
}

/* ---- answers ---- */

static int count_events(const struct connection *c) {
    int count = 0;
    const char *at = c->body, *end = c->body + c->body_length;
    while (at < end) {
        if (end - at >= 5 && !memcmp(at, "data:", 5)) count++;
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        if (!newline) break;
        at = newline + 1;
    }
    return count;
}

static void finish(struct connection *c) {
    uint64_t now = now_ns();
    if (c->status != 200) return fail(c, BAD_STATUS);
    if (options.ending &&
        (!c->body_length || !memmem(c->body, c->body_length, options.ending, strlen(options.ending))))
        return fail(c, NO_ENDING);
    if (options.events && count_events(c) != options.events) return fail(c, WRONG_EVENTS);
    latency_ns[completed] = now - c->began_ns;
    first_ns[completed] = (c->first_body_ns ? c->first_body_ns : now) - c->began_ns;
    body_bytes += c->body_length;
    completed++;
    if (c->close_after) drop_connection(c);
    rest(c);
}

static const char *header(const struct connection *c, const char *name) {
    size_t length = strlen(name);
    for (const char *line = strstr(c->line, "\r\n"); line && line[2]; line = strstr(line + 2, "\r\n")) {
        if (strncasecmp(line + 2, name, length) || line[2 + length] != ':') continue;
        const char *value = line + 3 + length;
        while (*value == ' ' || *value == '\t') value++;
        return value;
    }
    return NULL;
}

/* Reads the head, which is whole in `line`, and says what comes next. */
static void head_done(struct connection *c) {
    if (strncmp(c->line, "HTTP/1.", 7) || c->line_length < 12) return fail(c, MALFORMED);
    c->status = atoi(c->line + 9);
    if (c->status == 100) {
        c->line_length = 0;
        return;
    }
    const char *encoding = header(c, "transfer-encoding"), *length = header(c, "content-length");
    const char *connection = header(c, "connection");
    c->close_after = c->line[7] == '0' || (connection && !strncasecmp(connection, "close", 5));
    c->line_length = 0;
    if (encoding && strcasestr(encoding, "chunked")) {
        c->state = CHUNK_SIZE;
    } else if (length) {
        c->left = strtoull(length, NULL, 10);
        c->state = BODY_LENGTH;
        if (!c->left) finish(c);
    } else {
        c->close_after = true;
        c->state = BODY_UNTIL_CLOSE;
    }
}

/* Takes bytes up to and with `ending` into `line`; true once it is there. `*at` moves past what was taken. */
static bool take_line(struct connection *c, const char **at, const char *end, const char *ending) {
    size_t length = strlen(ending);
    while (*at < end) {
        if (c->line_length + 1 >= HEAD_LIMIT) {
            fail(c, MALFORMED);
            return false;
        }
        c->line[c->line_length++] = *(*at)++;
        if (c->line_length >= length && !memcmp(c->line + c->line_length - length, ending, length)) {
            c->line[c->line_length] = 0;
            return true;
        }
    }
    return false;
}

static void take_body(struct connection *c, const char **at, const char *end) {
    size_t n = (size_t)(end - *at);
    if (c->state != BODY_UNTIL_CLOSE && n > c->left) n = (size_t)c->left;
    if (c->body_length + n > c->body_capacity) {
        c->body_capacity = 2 * (c->body_length + n);
        c->body = must(realloc(c->body, c->body_capacity));
    }
    if (!c->first_body_ns) c->first_body_ns = now_ns();
    memcpy(c->body + c->body_length, *at, n);
    c->body_length += n;
    c->left -= n;
    *at += n;
}

static void take_chunk_size(struct connection *c) {
    char *digits_end;
    c->left = strtoull(c->line, &digits_end, 16);
    c->line_length = 0;
    if (digits_end == c->line) return fail(c, MALFORMED);
    c->state = c->left ? CHUNK_DATA : TRAILER;
}

static void take(struct connection *c, const char *at, const char *end) {
    while (at < end && c->fd >= 0) {
        switch (c->state) {
            case IDLE: /* bytes that nobody asked for */
                drop_connection(c);
                return;
            case HEAD:
                if (take_line(c, &at, end, "\r\n\r\n")) head_done(c);
                break;
            case BODY_LENGTH:
                take_body(c, &at, end);
                if (!c->left) finish(c);
                break;
            case BODY_UNTIL_CLOSE:
                take_body(c, &at, end);
                break;
            case CHUNK_SIZE:
                if (take_line(c, &at, end, "\r\n")) take_chunk_size(c);
                break;
            case CHUNK_DATA:
                take_body(c, &at, end);
                if (!c->left) c->state = CHUNK_END;
                break;
            case CHUNK_END:
                if (take_line(c, &at, end, "\r\n")) {
                    bool clean = c->line_length == 2;
                    c->line_length = 0;
                    c->state = CHUNK_SIZE;
                    if (!clean) fail(c, MALFORMED);
                }
                break;
            case TRAILER: /* ends with an empty line */
                if (take_line(c, &at, end, "\r\n")) {
                    bool last = c->line_length == 2;
                    c->line_length = 0;
                    if (last) finish(c);
                }
                break;
        }
    }
}

static void receive(struct connection *c) {
    static char buffer[READ_STEP];
    ssize_t n = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n > 0) {
        take(c, buffer, buffer + n);
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        if (c->state == IDLE)
            drop_connection(c); /* the server's keep-alive ran out; it is opened again when needed */
        else if (c->state == BODY_UNTIL_CLOSE)
            finish(c);
        else
            fail(c, SHORT);
    }
}

static void fail_the_late(void) {
    uint64_t now = now_ns(), patience = (uint64_t)(options.timeout_s * 1e9);
    for (int i = 0; i < options.connections; i++)
        if (connections[i].state != IDLE && now > connections[i].began_ns + patience) fail(&connections[i], TIMEOUT);
}

/* ---- the result ---- */

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void print_times(const char *name, uint64_t *times) {
    qsort(times, (size_t)completed, sizeof *times, by_value);
    double sum = 0;
    for (long i = 0; i < completed; i++) sum += (double)times[i];
    /* Nearest rank: the smallest value that at least so many percent do not exceed. */
#define AT(percent) (completed ? (double)times[(completed * (percent) + 99) / 100 - 1] / 1000 : 0.0)
    printf("\"%s\": {\"mean\": %.1f, \"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"max\": %.1f}", name,
           completed ? sum / (double)completed / 1000 : 0.0, AT(50), AT(90), AT(99), AT(100));
}

static void print_text(const char *text) {
    putchar('"');
    for (; *text; text++) {
        unsigned char byte = (unsigned char)*text;
        if (byte == '"' || byte == '\\')
            printf("\\%c", byte);
        else if (byte < 0x20 || byte >= 0x7f)
            printf("\\u%04x", byte);
        else
            putchar(byte);
    }
    putchar('"');
}

static void print_result(double seconds) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"completed\": %ld, \"errors\": %ld, \"errors_by\": {", completed, failed);
    for (int i = 0; i < FAILURES; i++) printf("%s\"%s\": %ld", i ? ", " : "", FAILURE_NAMES[i], failures[i]);
    printf("}, \"first_error\": ");
    print_text(sample);
    printf(", \"seconds\": %.6f, \"requests_per_second\": %.2f, \"body_bytes\": %llu, ", seconds,
           seconds > 0 ? (double)completed / seconds : 0.0, (unsigned long long)body_bytes);
    print_times("latency_us", latency_ns);
    printf(", ");
    print_times("first_byte_us", first_ns);
    printf(", \"client_cpu_seconds\": %.6f}\n",
           (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
               (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6);
}

/* ---- the start ---- */

static void read_options(int argc, char **argv) {
    char *headers = must(strdup(""));
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        if (!strcmp(name, "--port")) options.port = atoi(value);
        else if (!strcmp(name, "--path")) options.path = value;
        else if (!strcmp(name, "--requests")) options.requests = atol(value);
        else if (!strcmp(name, "--connections")) options.connections = atoi(value);
        else if (!strcmp(name, "--rate")) options.rate = atof(value);
        else if (!strcmp(name, "--timeout-s")) options.timeout_s = atof(value);
        else if (!strcmp(name, "--ending")) options.ending = value;
        else if (!strcmp(name, "--events")) options.events = atoi(value);
        else if (!strcmp(name, "--body")) options.body = value;
        else if (!strcmp(name, "--header")) {
            char *longer;
            if (asprintf(&longer, "%s%s\r\n", headers, value) < 0) die("memory");
            free(headers);
            headers = longer;
        } else {
            fprintf(stderr, "unknown option %s\n", name);
            exit(2);
        }
    }
    if (!(argc % 2) || options.port < 1 || options.connections < 1 || options.requests < 1) {
        fprintf(stderr, "usage: load --port P --path /... --requests M --connections N, see the head of load.c\n");
        exit(2);
    }
    int length = asprintf(&options.request,
                          "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%sContent-Length: %zu\r\n\r\n%s",
                          *options.body ? "POST" : "GET", options.path, options.port, headers,
                          strlen(options.body), options.body);
    if (length < 0) die("memory");
    options.request_length = (size_t)length;
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* never outlives the run that started it */
    connections = must(calloc((size_t)options.connections, sizeof *connections));
    idle = must(calloc((size_t)options.connections, sizeof *idle));
    latency_ns = must(calloc((size_t)options.requests, sizeof *latency_ns));
    first_ns = must(calloc((size_t)options.requests, sizeof *first_ns));
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = &timer_fd};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &e)) die("epoll_ctl");
    for (int i = 0; i < options.connections; i++) {
        open_connection(&connections[i]); /* what fails here is tried again by its first request */
        rest(&connections[i]);
    }
    uint64_t last_check = start_ns = now_ns();
    feed();
    while (completed + failed < options.requests) {
        struct epoll_event events[MAX_EVENTS];
        int count = epoll_wait(epoll_fd, events, MAX_EVENTS, 500);
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr == &timer_fd) {
                uint64_t expirations;
                if (read(timer_fd, &expirations, sizeof expirations) < 0 && errno != EAGAIN) die("timerfd");
                continue;
            }
            struct connection *c = events[i].data.ptr;
            if (c->fd >= 0 && c->state != IDLE && events[i].events & EPOLLOUT) {
                watch(c, EPOLLIN, EPOLL_CTL_MOD);
                push(c);
            }
            if (c->fd >= 0 && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
        }
        if (now_ns() - last_check > 500000000u) {
            last_check = now_ns();
            fail_the_late();
        }
        feed();
    }
    print_result((double)(now_ns() - start_ns) / 1e9);
    return 0;
}
