package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/config"
)

// keyBlock is the kind of PEM block that a private key stands in: PKCS #8, as other
// tools write and read it.
const keyBlock = "PRIVATE KEY"

func (a *app) keysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Make and show the keys that records are signed with",
		Long: `Make and show the keys that records are signed with (Ed25519). The private key is named in signing.key_file of
transfer's configuration, the public one in signing.trusted of every edge's. A stream that was published without
one begins like this: transfer is started with the key_file; millrace status shows an index, and every record
after it is signed; edges then trust the public key from the following index on.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.keysNewCommand(), a.keysShowCommand())
	return cmd
}

func (a *app) keysNewCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "new FILE",
		Short: "Make a private key in FILE, and print the public one",
		Args:  exactArgs(1, "a file"),
		RunE: func(_ *cobra.Command, args []string) error {
			_, key, err := ed25519.GenerateKey(rand.Reader)
			if err != nil {
				return fmt.Errorf("make a key: %w", err)
			}
			if err := writeKey(args[0], key); err != nil {
				return err
			}
			return a.printKey(key, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) keysShowCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show FILE",
		Short: "Print the public key of the private one in FILE",
		Args:  exactArgs(1, "a file"),
		RunE: func(_ *cobra.Command, args []string) error {
			key, err := readKey(args[0])
			if err != nil {
				return err
			}
			return a.printKey(key, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) printKey(key ed25519.PrivateKey, asJSON bool) error {
	pub := publicOf(key)
	text := millrace.FormatPublicKey(pub)
	if asJSON {
		return json.NewEncoder(a.stdout).Encode(struct {
			Key string `json:"key"`
			ID  string `json:"id"`
		}{text, fmt.Sprintf("%x", millrace.NewKeyID(pub))})
	}
	_, err := fmt.Fprintln(a.stdout, text)
	return err
}

func publicOf(key ed25519.PrivateKey) ed25519.PublicKey {
	pub, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		panic("millrace: an Ed25519 key has a public part of another kind")
	}
	return pub
}

// writeKey makes a new file: a key that is there is never overwritten.
func writeKey(path string, key ed25519.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return usage("%s is there already, and may be a key that is in use; name another file", path)
	}
	if err != nil {
		return fmt.Errorf("make key file: %w", err)
	}
	err = pem.Encode(f, &pem.Block{Type: keyBlock, Bytes: der})
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write key file: %w", err), os.Remove(path))
	}
	return nil
}

// readKey refuses a file that others may read: who has the key can publish.
func readKey(path string) (ed25519.PrivateKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, operator("key file: %v; mend: millrace keys new %s, or correct signing.key_file", err, path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, operator("key file %s may be read by others (mode %o); mend: chmod 600 %[1]s", path, mode)
	}
	text, err := os.ReadFile(path) //nolint:gosec // the operator names it
	if err != nil {
		return nil, operator("key file: %v", err)
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != keyBlock {
		return nil, operator("key file %s holds no private key in PEM; mend: millrace keys new makes one", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, operator("key file %s: %v; mend: millrace keys new makes one", path, err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, operator("key file %s holds a key of another kind; records are signed with Ed25519; mend: millrace keys new makes one", path)
	}
	return key, nil
}

// trusted returns the keys whose records a stream has; nil if signatures are not
// looked at.
func trusted(s *config.Stream) (*millrace.Keyring, error) {
	var keys []millrace.TrustedKey
	for _, text := range s.Signing.Trusted {
		k, err := millrace.ParseTrustedKey(text)
		if err != nil {
			return nil, usage("streams.%s.signing.trusted: %v", s.Name, err)
		}
		keys = append(keys, k)
	}
	return millrace.NewKeyring(keys)
}

// signing returns what a publisher signs with, nil for nothing, and whom it trusts. A
// publisher that would refuse its own records is refused.
func signing(s *config.Stream) (key ed25519.PrivateKey, ring *millrace.Keyring, err error) {
	if ring, err = trusted(s); err != nil {
		return nil, nil, err
	}
	if s.Signing.KeyFile == "" {
		if ring != nil {
			return nil, nil, operator("streams.%s.signing.trusted asks for signatures, and this publisher has no key_file; set it, or remove trusted", s.Name)
		}
		return nil, nil, nil
	}
	if key, err = readKey(s.Signing.KeyFile); err != nil {
		return nil, nil, err
	}
	if pub := publicOf(key); ring != nil && !ring.Trusts(pub) {
		return nil, nil, operator("streams.%s.signing.trusted does not name the key of key_file; add %s@ and the index from which it signs", s.Name, millrace.FormatPublicKey(pub))
	}
	return key, ring, nil
}
