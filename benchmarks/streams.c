/* Many streams at once from one HTTP/1.1 server on loopback: one thread, epoll, a connection each, the same request.
 *
 *   streams --port P --path /v1/... --body TEXT --streams N --ramp-s R --seconds S --interval-s I [--header "Name: v"]...
 *
 * Streams are opened evenly over R seconds. Once each of them has brought a chunk it prints a line, `steady`; S seconds
 * later another, `measured`; and when all streams have ended one JSON object. In between it takes, of every chunk that
 * upstream.c stamped, two times: its delay, from when the upstream sent it (both read CLOCK_MONOTONIC), and by how much
 * the gap to the one before differs from I. A stream counts as whole when its status is 200 and it came to its "data: [DONE]".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { READ_STEP = 65536, MAX_EVENTS = 512, STAMP_LENGTH = 16, PATIENCE_S = 60 };

/* What a read may cut in two and the next must see whole: a mark with its stamp, or the end. */
#define MARK "\"fp_"
#define END "data: [DONE]"
enum { MARK_LENGTH = sizeof MARK - 1, KEPT = MARK_LENGTH + STAMP_LENGTH - 1 };

struct stream {
    int fd;
    char kept[KEPT];
    int kept_length;
    bool begun, status_is_200, ended;
    uint64_t last_ns; /* when its last chunk came */
};

static struct {
    int port, streams;
    double ramp_s, seconds, interval_s;
    const char *path, *body;
    char *request;
    size_t request_length;
} options = {.streams = 1, .ramp_s = 1, .seconds = 10, .interval_s = 2, .path = "/", .body = ""};

static struct stream *streams;
static int epoll_fd, opened, begun, open_now, whole, broken;
static uint64_t start_ns, steady_ns, measured_ns;
static uint64_t *delays, *gaps; /* of the chunks of the measured time */
static long delay_count, gap_count, capacity;
static char sample[512]; /* of the first broken stream, for the person who reads the result */

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

static bool measuring(uint64_t now) { return steady_ns && now < steady_ns + (uint64_t)(options.seconds * 1e9); }

static void finish(struct stream *s, const char *why, const char *detail, size_t length) {
    close(s->fd);
    s->fd = -1;
    open_now--;
    if (!why) {
        whole++;
        return;
    }
    if (!broken) snprintf(sample, sizeof sample, "%s: %.*s", why, (int)(length > 400 ? 400 : length), detail);
    broken++;
}

static void open_stream(struct stream *s) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options.port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    struct timeval patience = {.tv_sec = 10};
    int on = 1;
    opened++;
    open_now++;
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (s->fd < 0) die("socket");
    setsockopt(s->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience); /* bounds connect() too */
    setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(s->fd, (struct sockaddr *)&address, sizeof address)) return finish(s, "no connection", "", 0);
    /* A request of a kilobyte fits into an empty socket's buffer. */
    if (send(s->fd, options.request, options.request_length, MSG_NOSIGNAL) != (ssize_t)options.request_length)
        return finish(s, "the request did not go out", "", 0);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = s};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, s->fd, &e)) die("epoll_ctl");
}

static void chunk_came(struct stream *s, const char *stamp, uint64_t now) {
    char digits[STAMP_LENGTH + 1] = {0};
    memcpy(digits, stamp, STAMP_LENGTH);
    uint64_t sent = strtoull(digits, NULL, 16);
    if (measuring(now)) {
        if (delay_count < capacity) delays[delay_count++] = now > sent ? now - sent : 0;
        if (s->last_ns >= steady_ns && gap_count < capacity) {
            int64_t late = (int64_t)(now - s->last_ns) - (int64_t)(options.interval_s * 1e9);
            gaps[gap_count++] = (uint64_t)(late < 0 ? -late : late);
        }
    }
    s->last_ns = now;
    if (!s->begun) {
        s->begun = true;
        begun++;
    }
}

/* Reads the stamps, and the end, out of what came; keeps what may be the beginning of either. */
static void take(struct stream *s, const char *text, size_t length, uint64_t now) {
    const char *at = text, *end = text + length;
    for (const char *mark; (mark = memmem(at, (size_t)(end - at), MARK, MARK_LENGTH)); at = mark + MARK_LENGTH) {
        if (end - mark < MARK_LENGTH + STAMP_LENGTH) break;
        chunk_came(s, mark + MARK_LENGTH, now);
    }
    if (memmem(text, length, END, strlen(END))) s->ended = true;
    /* A stamp that was read must not be read again: what is kept begins behind its mark. */
    size_t left = (size_t)(end - at);
    s->kept_length = (int)(left < KEPT ? left : KEPT);
    memcpy(s->kept, end - s->kept_length, (size_t)s->kept_length);
}

static void receive(struct stream *s) {
    static char buffer[KEPT + READ_STEP];
    memcpy(buffer, s->kept, (size_t)s->kept_length);
    ssize_t n = recv(s->fd, buffer + s->kept_length, READ_STEP, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    size_t length = (size_t)s->kept_length + (size_t)(n > 0 ? n : 0);
    if (n <= 0) return finish(s, "it was cut", buffer, length);
    if (!s->status_is_200) {
        if (length < 12 || memcmp(buffer + 8, " 200", 4)) return finish(s, "no 200", buffer, length);
        s->status_is_200 = true;
    }
    take(s, buffer, length, now_ns());
    if (s->ended) finish(s, NULL, NULL, 0);
}

/* Opens the streams that are due. Returns the milliseconds until the next one is. */
static int feed(void) {
    uint64_t now = now_ns();
    while (opened < options.streams) {
        uint64_t due = start_ns + (uint64_t)((double)opened * options.ramp_s * 1e9 / options.streams);
        if (due > now) return (int)((due - now) / 1000000u) + 1;
        open_stream(&streams[opened]);
    }
    return 100;
}

static void say_when(void) {
    uint64_t now = now_ns();
    if (!steady_ns && begun + broken == options.streams) {
        steady_ns = now;
        puts("steady");
        fflush(stdout);
    }
    if (steady_ns && !measured_ns && !measuring(now)) {
        measured_ns = now;
        puts("measured");
        fflush(stdout);
    }
}

/* ---- the result ---- */

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void print_times(const char *name, uint64_t *times, long count) {
    qsort(times, (size_t)count, sizeof *times, by_value);
    double sum = 0;
    for (long i = 0; i < count; i++) sum += (double)times[i];
    /* Nearest rank: the smallest value that at least so many percent do not exceed. */
#define AT(percent) (count ? (double)times[(count * (percent) + 99) / 100 - 1] / 1000 : 0.0)
    printf("\"%s\": {\"mean\": %.1f, \"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"max\": %.1f}, ", name,
           count ? sum / (double)count / 1000 : 0.0, AT(50), AT(90), AT(99), AT(100));
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

static void print_result(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"whole\": %d, \"broken\": %d, \"chunks\": %ld, ", whole, broken, delay_count);
    print_times("delay_us", delays, delay_count);
    print_times("gap_us", gaps, gap_count);
    printf("\"first_broken\": ");
    print_text(sample);
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
        else if (!strcmp(name, "--body")) options.body = value;
        else if (!strcmp(name, "--streams")) options.streams = atoi(value);
        else if (!strcmp(name, "--ramp-s")) options.ramp_s = atof(value);
        else if (!strcmp(name, "--seconds")) options.seconds = atof(value);
        else if (!strcmp(name, "--interval-s")) options.interval_s = atof(value);
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
    if (!(argc % 2) || options.port < 1 || options.streams < 1 || options.interval_s <= 0) {
        fprintf(stderr, "usage: streams --port P --path /... --streams N, see the head of streams.c\n");
        exit(2);
    }
    int length = asprintf(&options.request, "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%sContent-Length: %zu\r\n\r\n%s",
                          options.path, options.port, headers, strlen(options.body), options.body);
    if (length < 0) die("memory");
    options.request_length = (size_t)length;
    capacity = (long)(options.streams * (options.seconds / options.interval_s + 3));
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* never outlives the run that started it */
    streams = must(calloc((size_t)options.streams, sizeof *streams));
    delays = must(calloc((size_t)capacity, sizeof *delays));
    gaps = must(calloc((size_t)capacity, sizeof *gaps));
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    start_ns = now_ns();
    uint64_t last = start_ns; /* when something last came: a server that hangs ends the run */
    int wait_ms = feed();
    while (open_now || opened < options.streams) {
        struct epoll_event events[MAX_EVENTS];
        int count = epoll_wait(epoll_fd, events, MAX_EVENTS, wait_ms);
        for (int i = 0; i < count; i++) receive(events[i].data.ptr);
        if (count > 0) last = now_ns();
        if (now_ns() - last > PATIENCE_S * 1000000000ull)
            for (int i = 0; i < opened; i++)
                if (streams[i].fd >= 0) finish(&streams[i], "nothing came any more", "", 0);
        wait_ms = feed();
        say_when();
    }
    print_result();
    return 0;
}
