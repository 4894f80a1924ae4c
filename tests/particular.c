/* A job that minds its signals, for the tests of what a dead daemon has left.

   particular FIFO [child]

   It writes over its environment, as programs do that keep their title there, forks once if it is told to,
   and tells on FIFO that it is "up" and which signals it gets. It ends by SIGINT, and by no SIGTERM or
   SIGHUP. FIFO.held is locked for as long as anything of the run lives: a run that finds it locked tells
   "two".  */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

extern char **environ;

static void tell(int fifo, const char *word)
{
    char line[40];
    int size = snprintf(line, sizeof line, "%s\n", word);
    if (write(fifo, line, size) != size)
        _exit(90);
}

int main(int argc, char **argv)
{
    char held[4096];
    sigset_t asked;
    int number = 0;

    sigemptyset(&asked);
    sigaddset(&asked, SIGINT);
    sigaddset(&asked, SIGTERM);
    sigaddset(&asked, SIGHUP);
    sigprocmask(SIG_BLOCK, &asked, NULL);
    for (char **one = environ; *one; one++)
        memset(*one, 0, strlen(*one));

    int fifo = open(argv[1], O_WRONLY);
    snprintf(held, sizeof held, "%s.held", argv[1]);
    int lock = open(held, O_RDWR | O_CREAT, 0666);
    if (fifo < 0 || lock < 0)
        return 91;
    if (flock(lock, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK)
        tell(fifo, "two");
    if (argc > 2 && fork() < 0)
        return 92;
    tell(fifo, "up");
    alarm(80); /* should a test be killed */
    while (sigwait(&asked, &number) || number != SIGINT)
        tell(fifo, number == SIGHUP ? "SIGHUP" : "SIGTERM");
    tell(fifo, "SIGINT");
    return 0;
}
