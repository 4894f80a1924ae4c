/* Processes that do not want to end, for the tests of stopping.

   nasty LIFELINE TAG MODE...

   LIFELINE is a FIFO: everything that is born here holds it open for writing, so its reader sees the
   end of file when, and only when, nothing is left; no list of processes has to be believed for that.
   TAG stands in the command line of each of them. The first process becomes all that the MODEs say, one
   process (or more) each, which write "MODE PID" to LIFELINE when they are what they are to be.

   A MODE in capitals is about the first process itself. Without one it waits until a signal ends it.

   LIFELINE.held is locked for as long as anything of the run lives: if a run finds it locked, there are two
   runs, and it writes "two".  */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { STORM = 10000, LIFE = 40 /* seconds: should a test be killed, its monsters end by themselves */ };

static int lifeline;
static int lock;
static struct timespec born;
static char **words; /* argv */

static void tell(const char *mode)
{
    char line[200];
    int size = snprintf(line, sizeof line, "%s %d\n", mode, (int)getpid());
    if (write(lifeline, line, size) != size)
        _exit(90);
}

static void end_when_old(void)
{
    struct timespec now;
    if (clock_gettime(CLOCK_MONOTONIC, &now) || now.tv_sec > born.tv_sec + LIFE)
        _exit(97);
}

static void wait_for_ever(void)
{
    signal(SIGALRM, SIG_DFL);
    alarm(2 * LIFE);
    for (;;)
        pause();
}

/* The number of processes of this user is bounded: a bomb that leaves room for others. */
static void become(int uid, int processes)
{
    struct rlimit limit = {processes, processes};
    if (setgroups(0, NULL) || setgid(uid) || setuid(uid) || setrlimit(RLIMIT_NPROC, &limit)) {
        tell("cannot-become");
        _exit(91);
    }
    prctl(PR_SET_DUMPABLE, 1); /* as a program that was started by that user would be */
}

static void count(int number)
{
    (void)number;
    tell("term");
}

/* It has a zombie in the first process's group, never reaps it, and is itself in another group. */
static void keep_zombie(void)
{
    siginfo_t info;
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    setsid();
    waitid(P_PID, pid, &info, WEXITED | WNOWAIT);
}

/* Many processes that lose their parents and die soon. Says when the last one has. */
static void storm(const char *mode)
{
    int ends[2];
    char nothing;
    if (pipe(ends))
        _exit(96);
    tell("storm-begins");
    for (int count = 0; count < STORM; count++) {
        pid_t pid = fork();
        if (pid == 0) {
            if (fork() == 0)
                usleep(20000 + (count % 50) * 2000);
            _exit(0);
        }
        waitpid(pid, NULL, 0);
    }
    close(ends[1]);
    while (read(ends[0], &nothing, 1) > 0)
        ;
    tell(mode);
    wait_for_ever();
}

static void hop(const char *mode, int own_session)
{
    tell(mode);
    for (;;) {
        pid_t pid = fork();
        end_when_old();
        if (pid > 0)
            _exit(0);
        if (pid == 0 && own_session)
            setsid();
    }
}

static void bomb(const char *mode)
{
    become(54321, 60);
    int told = 0;
    for (;;) {
        end_when_old();
        if (fork() < 0 && !told) { /* it is as big as it can be */
            tell(mode);
            told = 1;
        }
    }
}

static void *live_on(void *mode)
{
    usleep(1000); /* the first thread ends now */
    tell(mode);
    wait_for_ever();
    return NULL;
}

/* Its first thread ends alone: /proc/PID/stat calls it a zombie, and it lives. */
static void lose_head(const char *mode)
{
    pthread_t thread;
    pthread_create(&thread, NULL, live_on, (void *)mode);
    pthread_exit(NULL);
}

/* The same program, mode "bare", with nothing in its environment. */
static void clear_environment(const char *mode)
{
    char number[20];
    char *arguments[] = {words[0], words[1], words[2], "BARE", (char *)mode, number, NULL};
    char *empty[] = {NULL};
    snprintf(number, sizeof number, "%d", lifeline);
    fcntl(lifeline, F_SETFD, 0);
    fcntl(lock, F_SETFD, 0);
    execve("/proc/self/exe", arguments, empty);
    _exit(92);
}

static void daemonise(void)
{
    if (fork() > 0)
        _exit(0);
    setsid();
    if (fork() > 0)
        _exit(0);
    while (getppid() == getpgrp()) /* the parent's death is what makes it one */
        usleep(100);
}

static void child(const char *mode)
{
    if (!strcmp(mode, "group"))
        ;
    else if (!strcmp(mode, "setsid"))
        setsid();
    else if (!strcmp(mode, "daemon"))
        daemonise();
    else if (!strcmp(mode, "deaf"))
        signal(SIGTERM, SIG_IGN);
    else if (!strcmp(mode, "counter"))
        signal(SIGTERM, count);
    else if (!strcmp(mode, "storm"))
        storm(mode);
    else if (!strcmp(mode, "zombie"))
        keep_zombie();
    else if (!strcmp(mode, "hop"))
        hop(mode, 0);
    else if (!strcmp(mode, "setsid-hop")) {
        setsid();
        hop(mode, 0);
    } else if (!strcmp(mode, "hop-setsid"))
        hop(mode, 1);
    else if (!strcmp(mode, "bomb"))
        bomb(mode);
    else if (!strcmp(mode, "headless"))
        lose_head(mode);
    else if (!strcmp(mode, "bare"))
        clear_environment(mode);
    else if (!strcmp(mode, "bare-setsid")) {
        setsid();
        clear_environment(mode);
    } else if (!strcmp(mode, "stray")) {
        daemonise();
        clear_environment(mode);
    } else if (!strcmp(mode, "stray-deaf")) {
        daemonise();
        signal(SIGTERM, SIG_IGN);
        clear_environment(mode);
    } else if (!strcmp(mode, "stray-hop")) {
        daemonise();
        clear_environment(mode);
    } else if (!strcmp(mode, "stopped")) {
        tell(mode);
        raise(SIGSTOP);
    } else {
        tell("unknown-mode");
        _exit(93);
    }
    if (strcmp(mode, "stopped"))
        tell(mode);
    wait_for_ever();
}

static void be(const char *mode)
{
    if (!strcmp(mode, "DEAF")) /* the leader ignores the stop signal, and so do those who come after */
        signal(SIGTERM, SIG_IGN);
    else if (!strcmp(mode, "FOREIGN")) { /* with a set-user-ID bit: its owner's, through and through */
        if (setresuid(geteuid(), geteuid(), geteuid()))
            _exit(95);
    } else if (!strcmp(mode, "STOPPED")) {
        tell(mode);
        raise(SIGSTOP);
    } else if (!strcmp(mode, "END")) { /* the leader ends as soon as SIGUSR1 says so */
        int number;
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGUSR1);
        sigprocmask(SIG_BLOCK, &set, NULL);
        tell(mode);
        sigwait(&set, &number);
        _exit(0);
    } else {
        tell("unknown-mode");
        _exit(93);
    }
    tell(mode);
}

int main(int argc, char **argv)
{
    char path[4096];
    words = argv;
    clock_gettime(CLOCK_MONOTONIC, &born);
    if (argc == 6 && !strcmp(argv[3], "BARE")) {
        lifeline = atoi(argv[5]);
        if (!strcmp(argv[4], "stray-hop"))
            hop(argv[4], 1);
        tell(argv[4]);
        wait_for_ever();
    }
    lifeline = open(argv[1], O_WRONLY | O_CLOEXEC);
    snprintf(path, sizeof path, "%s.held", argv[1]);
    lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666); /* by one open file, which all inherit */
    if (lifeline < 0 || lock < 0)
        return 94;
    if (flock(lock, LOCK_EX | LOCK_NB))
        tell("two");
    for (int at = 3; at < argc; at++)
        if (argv[at][0] >= 'a') {
            if (fork() == 0)
                child(argv[at]);
        } else
            be(argv[at]);
    tell("leader");
    wait_for_ever();
}
