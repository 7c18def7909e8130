package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/penstock/penstock/mail/smtp/sasl"
	"github.com/penstock/penstock/mail/smtp/sasl/users"
)

// user.go: the file of users who may log in, which a listener names as auth.users.

func newUser() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "user",
		Short: "Keep the file of users who may log in",
		Long: `Adds, removes and lists the users of a file that a listener names as auth.users. A running
gateway takes a changed file over by itself.`,
		Example: `  gateway user add alice@example.com --file /etc/penstock/users.txt
  gateway user list --file /etc/penstock/users.txt
  gateway user remove alice@example.com --file /etc/penstock/users.txt`,
	})
	cmd.AddCommand(newUserAdd(), newUserRemove(), newUserList())
	return cmd
}

// fileFlag adds the flag that all of them have.
func fileFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "file", "f", "users.txt", "the `FILE` of users")
}

func newUserAdd() *cobra.Command {
	var file, scheme string
	var stdin bool
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a user, or give one a new password",
		Long: `Asks for a password and writes a line NAME:HASH. A line that the name has in the same
scheme is replaced; one of another scheme stays if it is of the same password, and is
removed if not, so that the old password is no longer let in.

The scheme decides which mechanisms the user can log in with:
  scram-sha-256   SCRAM-SHA-256 (and -PLUS), PLAIN, LOGIN: the default, since one line
                  serves all clients and no password is kept
  argon2id        PLAIN, LOGIN; the hardest to guess for a thief of the file
  bcrypt          PLAIN, LOGIN; as other programs know it. At most 72 octets
  plain           all, and CRAM-MD5. The password stands in the file as it is: avoid it
SCRAM is offered while every user of the file has a line that serves it, and CRAM-MD5
likewise: a client takes the strongest mechanism that it sees, and would fail with it.

The file is made if it is not there, readable by its owner alone.`,
		Example: `  gateway user add alice@example.com
  gateway user add --file /etc/penstock/users.txt --scheme argon2id alice@example.com
  pwgen 20 1 | tee /dev/stderr | gateway user add --stdin printer`,
		Args: rangeArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := schemeOf(scheme)
			if err != nil {
				return err
			}
			password, err := readPassword(cmd.Context(), stdin, cmd.InOrStdin(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return addUser(file, args[0], s, password, cmd.OutOrStdout())
		},
	}
	fileFlag(cmd, &file)
	cmd.Flags().StringVar(&scheme, "scheme", string(users.SCRAM), "how to keep the password: scram-sha-256, argon2id, bcrypt or plain")
	cmd.Flags().BoolVar(&stdin, "stdin", false, "read the password from standard input, one line")
	return cmd
}

func schemeOf(name string) (users.Scheme, error) {
	var names []string
	for _, s := range users.Schemes() {
		if string(s) == name {
			return s, nil
		}
		names = append(names, string(s))
	}
	return "", usageError{fmt.Errorf("--scheme %q: it is one of %s", name, strings.Join(names, ", "))}
}

func addUser(file, name string, s users.Scheme, password string, stdout io.Writer) error {
	removed, err := users.Set(file, name, s, password)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s: %s has a password (%s)\n", file, printable(name), s)
	for _, old := range removed {
		fmt.Fprintf(stdout, "%s: the line of %s was of another password, and is removed\n", file, old)
	}
	return nil
}

func newUserRemove() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:     "remove NAME",
		Short:   "Remove a user",
		Long:    `Removes all lines of a name. Exits 1 if there is none.`,
		Example: `  gateway user remove alice@example.com --file /etc/penstock/users.txt`,
		Args:    rangeArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := users.Remove(file, args[0])
			if errors.Is(err, users.ErrNoUser) {
				return fmt.Errorf("%s has no user %q", file, args[0])
			}
			if err == nil {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s is removed\n", file, printable(args[0]))
			}
			return err
		},
	}
	fileFlag(cmd, &file)
	return cmd
}

func newUserList() *cobra.Command {
	var file string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the users and how their passwords are kept",
		Long: `Lists names and schemes, never hashes, and says which users keep SCRAM from being
offered. Exits 1 if the file has problems, and prints all of them.`,
		Example: `  gateway user list --file /etc/penstock/users.txt
  gateway user list --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return listUsers(file, asJSON, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	fileFlag(cmd, &file)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func listUsers(file string, asJSON bool, stdout, stderr io.Writer) error {
	f, err := users.Open(file)
	if err != nil {
		return err
	}
	list := f.Users()
	if asJSON {
		err = writeUsersJSON(stdout, list)
	} else {
		err = writeUsersTable(stdout, list)
	}
	for _, w := range f.Warnings() {
		fmt.Fprintln(stderr, "warning:", printable(w))
	}
	if n := len(f.Without(sasl.SCRAMSHA256)); n > 0 && n < len(list) {
		fmt.Fprintf(stderr, "note: SCRAM is not offered, since %d of %d users have no line that serves it\n", n, len(list))
	}
	return err
}

func writeUsersTable(w io.Writer, list []users.User) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tSCHEMES")
	for _, u := range list {
		var schemes []string
		for _, s := range u.Schemes {
			schemes = append(schemes, string(s))
		}
		fmt.Fprintf(t, "%s\t%s\n", printable(u.Name), strings.Join(schemes, ", "))
	}
	return t.Flush()
}

func writeUsersJSON(w io.Writer, list []users.User) error {
	type user struct {
		Name    string         `json:"name"`
		Schemes []users.Scheme `json:"schemes"`
	}
	out := []user{}
	for _, u := range list {
		out = append(out, user{u.Name, u.Schemes})
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(out)
}

// readPassword reads a password from a line of in, or asks for it twice at the terminal.
func readPassword(ctx context.Context, fromInput bool, in io.Reader, prompts io.Writer) (string, error) {
	if fromInput {
		return passwordLine(in)
	}
	tty, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(tty.Fd())) {
		return "", usageError{errors.New("there is no terminal to ask for a password; give it on standard input with --stdin")}
	}
	first, err := askHidden(ctx, tty, prompts, "Password: ")
	if err != nil {
		return "", err
	}
	second, err := askHidden(ctx, tty, prompts, "Again: ")
	if err == nil && first != second {
		err = errors.New("the two passwords are not the same; nothing is changed")
	}
	return first, err
}

// passwordLine reads all of in, which must be one line. More would be a mistake that shows
// when nobody can log in.
func passwordLine(in io.Reader) (string, error) {
	b, err := io.ReadAll(io.LimitReader(in, sasl.MaxPassword+3))
	if err != nil {
		return "", fmt.Errorf("read the password: %w", err)
	}
	line := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	switch {
	case line == "":
		return "", errors.New("the password is empty")
	case len(line) > sasl.MaxPassword:
		return "", fmt.Errorf("the password is longer than %d octets", sasl.MaxPassword)
	case strings.Contains(line, "\n"):
		return "", errors.New("a password is one line, and standard input has more")
	}
	return line, nil
}

// askHidden asks at a terminal, whose echo is off meanwhile. An interrupt does not end the
// read, so that it is left behind then, for a program that is about to end, and the echo
// is put back.
func askHidden(ctx context.Context, tty *os.File, prompts io.Writer, prompt string) (string, error) {
	fd := int(tty.Fd())
	state, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("ask for a password: %w", err)
	}
	fmt.Fprint(prompts, prompt)
	defer fmt.Fprintln(prompts)
	type answer struct {
		text []byte
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		text, err := term.ReadPassword(fd)
		answered <- answer{text, err}
	}()
	select {
	case a := <-answered:
		if a.err != nil {
			return "", fmt.Errorf("ask for a password: %w", a.err)
		}
		return string(a.text), nil
	case <-ctx.Done():
		return "", errors.Join(errors.New("interrupted; nothing is changed"), term.Restore(fd, state))
	}
}
