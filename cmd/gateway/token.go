package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/admin"
	"github.com/penstock/penstock/admin/api"
)

// token.go: the file of those who may use the admin API. It is edited in place: comments and
// order stay as they are.

func newToken() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "token",
		Short: "Say who may use the admin API",
		Long: `Edits the file that admin.tokens names in the configuration. A running gateway sees the
change within a second.`,
		Example: `  gateway token new --role upload ci
  gateway token list
  gateway token remove ci`,
	})
	cmd.AddCommand(newTokenNew(), newTokenList(), newTokenRemove())
	return cmd
}

func addTokensFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "file", "f", "tokens.txt", "the `file` that admin.tokens names")
}

func newTokenNew() *cobra.Command {
	var file string
	var roles []string
	cmd := &cobra.Command{
		Use:   "new NAME",
		Short: "Make a token, and print it this once",
		Long: `Makes a token for NAME, adds its hash to the file, and prints the token. It cannot be
shown again: the file has only the hash. The roles:
  read      see status, filters and metrics
  operate   act on what runs; includes read
  upload    change filters; includes read
  admin     everything`,
		Example: `  gateway token new --file /etc/penstock/tokens.txt --role read prometheus
  gateway token new --role upload,operate ci`,
		Args: rangeArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(roles) == 0 {
				return usageError{fmt.Errorf("--role is needed: one or more of %v", api.Roles())}
			}
			secret, err := addToken(file, args[0], roles)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), secret)
			return err
		},
	}
	addTokensFlag(cmd, &file)
	cmd.Flags().StringSliceVar(&roles, "role", nil, "what it may do: read, operate, upload, admin; several with commas")
	return cmd
}

// addToken adds a token to the file, which it makes if there is none.
func addToken(file, name string, roles []string) (secret string, err error) {
	var list []api.Role
	for _, r := range roles {
		list = append(list, api.Role(r))
	}
	secret, token, err := admin.NewToken(name, list...)
	if err != nil {
		return "", usageError{err}
	}
	text, tokens, err := readTokenFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if slices.ContainsFunc(tokens, func(t admin.Token) bool { return t.Name == name }) {
		return "", fmt.Errorf("%s has a token %s already; remove it first", file, name)
	}
	if len(text) > 0 && !bytes.HasSuffix(text, []byte("\n")) {
		text = append(text, '\n')
	}
	return secret, writeTokenFile(file, append(text, token.String()+"\n"...))
}

// readTokenFile returns the file and what is in it.
func readTokenFile(file string) ([]byte, []admin.Token, error) {
	text, err := readRegular(file, 1<<20)
	if err != nil {
		return nil, nil, err
	}
	tokens, err := admin.ParseTokens(text)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %s", file, oneLine(err))
	}
	return text, tokens, nil
}

// writeTokenFile replaces the file. A link to a file stays one, and a gateway that runs as
// another user can still read what it could.
func writeTokenFile(file string, text []byte) error {
	if real, err := filepath.EvalSymlinks(file); err == nil {
		file = real
	}
	return writeFileLike(file, text, 0o600)
}

func newTokenList() *cobra.Command {
	var file string
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List who has a token, and for what",
		Example: `  gateway token list --file /etc/penstock/tokens.txt`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, tokens, err := readTokenFile(file)
			if err != nil {
				return err
			}
			return printTokens(cmd.OutOrStdout(), tokens, asJSON)
		},
	}
	addTokensFlag(cmd, &file)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printTokens(w io.Writer, tokens []admin.Token, asJSON bool) error {
	type row struct {
		Name  string     `json:"name"`
		Roles []api.Role `json:"roles"`
	}
	rows := []row{}
	for _, t := range tokens {
		rows = append(rows, row{t.Name, t.Roles})
	}
	if asJSON {
		text, err := json.MarshalIndent(rows, "", "  ")
		if err == nil {
			_, err = fmt.Fprintf(w, "%s\n", text)
		}
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "NAME\tROLES")
	for _, r := range rows {
		fmt.Fprintf(tw, "%s\t%s\n", r.Name, strings.Trim(fmt.Sprint(r.Roles), "[]"))
	}
	return tw.Flush()
}

func newTokenRemove() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:     "remove NAME",
		Short:   "Take a token's rights away",
		Example: `  gateway token remove ci`,
		Args:    rangeArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return removeToken(file, args[0])
		},
	}
	addTokensFlag(cmd, &file)
	return cmd
}

func removeToken(file, name string) error {
	text, _, err := readTokenFile(file)
	if err != nil {
		return err
	}
	var kept []byte
	found := false
	for line := range bytes.Lines(text) {
		if bytes.HasPrefix(bytes.TrimSpace(line), []byte(name+":")) {
			found = true
			continue
		}
		kept = append(kept, line...)
	}
	if !found {
		return fmt.Errorf("%s has no token %q", file, name)
	}
	return writeTokenFile(file, kept)
}

// writeFileLike is writeFile for a file that keeps its owner, and its mode but for what others
// may; mode is for a new one. Only root can give files away, and only root edits those of others.
func writeFileLike(path string, data []byte, mode os.FileMode) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return writeFile(path, data, mode)
	}
	if err != nil {
		return err
	}
	if err := writeFile(path, data, info.Mode().Perm()&^0o007); err != nil {
		return err
	}
	return keepOwner(path, info)
}
