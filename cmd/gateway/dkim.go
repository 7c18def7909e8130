package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/mail/auth"
	"github.com/penstock/penstock/mail/smtp"
)

// dkim.go: the keys that sign what we send, in files that delivery.dkim names.

// maxKeyFile is the largest file of a key in octets.
const maxKeyFile = 64 << 10

// signingKeys reads the keys of a configuration, and says what is wrong with them.
func signingKeys(cfg *config.Config) ([]auth.Key, config.Problems) {
	var keys []auth.Key
	var problems config.Problems
	for i, d := range cfg.Delivery.DKIM {
		if d.Domain == "" || d.Selector == "" || d.Key == "" {
			continue // said already
		}
		key, err := readKey(d)
		if err != nil {
			problems = append(problems, cfg.Problem(fmt.Sprintf("delivery.dkim[%d].key", i), oneLine(err)))
			continue
		}
		if info, err := os.Stat(string(d.Key)); err == nil && info.Mode().Perm()&0o007 != 0 {
			problems = append(problems, cfg.Warning(fmt.Sprintf("delivery.dkim[%d].key", i), fmt.Sprintf("%s can be read by everybody on this machine", d.Key)))
		}
		keys = append(keys, key)
	}
	return keys, problems
}

func readKey(d config.DKIM) (auth.Key, error) {
	domain, err := smtp.ParseDomain(string(d.Domain))
	if err != nil {
		return auth.Key{}, err
	}
	text, err := readRegular(string(d.Key), maxKeyFile)
	if err != nil {
		return auth.Key{}, err
	}
	signer, err := auth.ParseKey(text)
	if err != nil {
		return auth.Key{}, fmt.Errorf("%s: %w", d.Key, err)
	}
	return auth.Key{Domain: domain, Selector: string(d.Selector), Signer: signer}, nil
}

// signingPaths are the files of the keys.
func signingPaths(cfg *config.Config) []string {
	var paths []string
	for _, d := range cfg.Delivery.DKIM {
		paths = append(paths, string(d.Key))
	}
	return paths
}

// reloadKeys reads the keys again, and keeps the old ones if one is wrong.
func (n *node) reloadKeys(cfg *config.Config) {
	keys, problems := signingKeys(cfg)
	if problems.Err() == nil {
		if err := n.signer.Use(keys); err != nil {
			problems = append(problems, cfg.Problem("delivery.dkim", oneLine(err)))
		}
	}
	n.logProblems("the old keys of delivery.dkim are kept", problems.Errors())
	if problems.Err() == nil {
		n.log.Info("keys that sign mail: read again", "keys", len(keys))
	}
}

func newDKIM() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "dkim",
		Short: "Make the keys that sign what is sent, and show their records",
		Long: `Keys for DKIM (RFC 6376) are files that delivery.dkim names, by domain and selector. Their
public halves are records in the DNS. To replace a key, make one with another selector, publish
its record, add it to the configuration, and take the old one out; its record stays for as
long as mail may be on its way.`,
		Example: `  gateway dkim new example.com --selector mail2026
  gateway dkim show -c penstock.yaml`,
	})
	cmd.AddCommand(newDKIMNew(), newDKIMShow())
	return cmd
}

// keyRecord is what is to be published of a key.
type keyRecord struct {
	Domain   string `json:"domain"`
	Selector string `json:"selector"`
	File     string `json:"file"`
	Name     string `json:"name"` // in the DNS
	Text     string `json:"text"` // of the TXT record
}

func recordOf(k auth.Key, file string) (keyRecord, error) {
	text, err := auth.Record(k.Signer.Public())
	return keyRecord{Domain: k.Domain.String(), Selector: k.Selector, File: file,
		Name: k.Selector + "._domainkey." + k.Domain.String(), Text: text}, err
}

func newDKIMNew() *cobra.Command {
	var selector, out, typ string
	var r remote // for --json alone
	cmd := &cobra.Command{
		Use:   "new DOMAIN",
		Short: "Make a key, and print the record to publish",
		Long: `Makes a key for mail from DOMAIN, writes it to a file that its owner alone can read, and
prints the record for the DNS and the lines for the configuration. A file that is there is never
overwritten. An RSA key has 2048 bits. With --type ed25519 the record is short; but many
receivers do not know that algorithm yet, so use it beside a key of RSA.`,
		Example: `  gateway dkim new example.com --selector mail2026
  gateway dkim new example.com --selector ed2026 --type ed25519 --out /etc/penstock/ed2026.pem`,
		Args: rangeArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := parseKeyName(args[0], selector)
			if err != nil {
				return err
			}
			if out == "" {
				out = k.Domain.String() + "." + k.Selector + ".pem"
			}
			record, err := makeKey(k, auth.KeyType(typ), out)
			if err != nil {
				return err
			}
			return r.print(cmd.OutOrStdout(), record, func(w io.Writer) { printNewKey(w, record) })
		},
	}
	f := cmd.Flags()
	f.StringVarP(&selector, "selector", "s", "", "the `name` of the key below the domain, such as mail2026; required")
	f.StringVarP(&out, "out", "o", "", "the `file` to write; DOMAIN.SELECTOR.pem by default")
	f.StringVar(&typ, "type", string(auth.RSA), "rsa or ed25519")
	f.BoolVar(&r.json, "json", false, "print JSON")
	return cmd
}

func parseKeyName(domain, selector string) (auth.Key, error) {
	d, err := smtp.ParseDomain(domain)
	if err != nil || d.IsLiteral() {
		return auth.Key{}, usageError{fmt.Errorf("%q is not a domain", domain)}
	}
	if selector == "" {
		return auth.Key{}, usageError{errors.New("--selector is needed: a name for the key, such as mail2026")}
	}
	s, err := smtp.ParseDomain(selector)
	if err != nil || s.IsLiteral() {
		return auth.Key{}, usageError{fmt.Errorf("--selector %q: use letters, digits and hyphens", selector)}
	}
	return auth.Key{Domain: d, Selector: s.String()}, nil
}

// makeKey makes a key and its file.
func makeKey(k auth.Key, t auth.KeyType, file string) (keyRecord, error) {
	if t != auth.RSA && t != auth.Ed25519 {
		return keyRecord{}, usageError{fmt.Errorf("--type %q: there are rsa and ed25519", t)}
	}
	signer, pem, err := auth.NewKey(t)
	if err != nil {
		return keyRecord{}, err
	}
	k.Signer = signer
	record, err := recordOf(k, file)
	if err != nil {
		return keyRecord{}, err
	}
	if err := writeOnce(file, pem); err != nil {
		if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("%s is there already; name another with --out", file)
		}
		return keyRecord{}, err
	}
	return record, nil
}

// writeOnce makes a file that its owner alone can read: whole or not at all, and never in place
// of another.
func writeOnce(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".new-*") // of mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil { // a rename would take the place of what is there
		return err
	}
	return syncDir(dir)
}

func printNewKey(w io.Writer, r keyRecord) {
	fmt.Fprintf(w, "%s holds the key. Publish this record, and then add the key to the configuration:\n\n%s\n\ndelivery:\n  dkim:\n    - {domain: %s, selector: %s, key: \"file:%s\"}\n",
		printable(r.File), auth.ZoneLine(r.Name, r.Text), r.Domain, r.Selector, printable(r.File))
}

func newDKIMShow() *cobra.Command {
	var flags configFlags
	var r remote // for --json alone
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "Show the records of the keys that a configuration has",
		Long:    `Reads the keys that delivery.dkim names, and prints the record of each.`,
		Example: `  gateway dkim show -c /etc/penstock/penstock.yaml`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			records, err := keyRecords(flags, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return r.print(cmd.OutOrStdout(), records, func(w io.Writer) {
				if len(records) == 0 {
					fmt.Fprintln(w, "delivery.dkim has no keys")
				}
				for _, k := range records {
					fmt.Fprintln(w, auth.ZoneLine(k.Name, k.Text))
				}
			})
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&r.json, "json", false, "print JSON")
	return cmd
}

func keyRecords(flags configFlags, stderr io.Writer) ([]keyRecord, error) {
	overrides, err := flags.overrides()
	if err != nil {
		return nil, err
	}
	cfg, problems := config.Load(flags.file, os.Environ(), overrides)
	if cfg == nil {
		printProblems(stderr, problems)
		return nil, errReported
	}
	keys, problems := signingKeys(cfg)
	printProblems(stderr, problems.Sorted(flags.file))
	if problems.Err() != nil {
		return nil, errReported
	}
	records := []keyRecord{}
	for i, k := range keys {
		record, err := recordOf(k, string(cfg.Delivery.DKIM[i].Key))
		if err != nil {
			return nil, err
		}
		records = append(records, record)
	}
	return records, nil
}
