package wal

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/pgtest"
)

// The server gives up the WAL that a slot needs, before and while it is read.
func TestSlotLost(t *testing.T) {
	t.Parallel()
	server := pgtest.Cluster(t, pgtest.Options{Settings: map[string]string{"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "48MB"}})
	db := pgtest.On(t, server)
	db.Exec("create table a (id int primary key)")
	r := newRig(t, db, nil, "a")
	r.open()
	r.copied()
	db.Exec("insert into a values (1)")
	r.sync()
	r.close()
	until(t, "slot is lost", func() bool {
		db.Exec("select pg_logical_emit_message(false, 'fill', repeat('x', 100000)) from generate_series(1, 200)")
		db.Exec("select pg_switch_wal()")
		db.Exec("checkpoint")
		return db.String("select wal_status from pg_replication_slots where slot_name = $1", r.cfg.Slot) == "lost"
	})
	err := r.openFails(ErrSlotLost)
	if !strings.Contains(err.Error(), "max_slot_wal_keep_size") {
		t.Errorf("error: %v", err)
	}
	findings, err := r.c.Check(r.ctx())
	if err != nil || len(findings) != 1 || !strings.Contains(findings[0].Text, r.cfg.Slot) {
		t.Errorf("check: %v, %v", findings, err)
	}
	// A stream that begins anew drops it.
	r.edge = newEdge()
	r.open()
	r.copied()
	r.equal()
}

// Gulps, wake-ups and deadlines work through TLS too.
func TestTLS(t *testing.T) {
	t.Parallel()
	server := pgtest.Cluster(t, pgtest.Options{})
	serveTLS(t, server.Dir())
	db := pgtest.On(t, server)
	db.Exec("create table a (id int primary key, v text)")
	db.Exec("alter system set ssl = on")
	db.Exec("select pg_reload_conf()")
	until(t, "server takes TLS", func() bool {
		db.Pool.Reset()
		return db.String("show ssl") == "on"
	})
	r := newRig(t, db, func(c *Config) {
		c.URL = strings.Replace(db.URL, "sslmode=disable", "sslmode=require", 1)
		c.Heartbeat = 10 * time.Millisecond
	}, "a")
	r.open()
	r.copied()
	db.Exec("insert into a select i, repeat(md5(i::text), 5) from generate_series(1, 50000) i")
	r.sync()
	r.equal()
	st := r.src.live.Load()
	if _, ok := st.conn.(*tls.Conn); !ok {
		t.Errorf("the stream runs over %T", st.conn)
	}
	p := r.next().position
	r.src.Confirm(p)
	until(t, "confirmation reaches the slot", func() bool { return r.slotLSN() == p.LSN })
	r.restart()
	r.sync()
	r.equal()
}

// serveTLS puts a certificate into a data directory, under its owner.
func serveTLS(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	cert, certErr := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	der, keyErr := x509.MarshalECPrivateKey(key)
	if err := errors.Join(certErr, keyErr); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	for name, block := range map[string]*pem.Block{
		"server.crt": {Type: "CERTIFICATE", Bytes: cert},
		"server.key": {Type: "EC PRIVATE KEY", Bytes: der},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, int(owner.Uid), int(owner.Gid)); err != nil {
			t.Fatal(err)
		}
	}
}
