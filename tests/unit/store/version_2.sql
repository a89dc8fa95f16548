-- A database of version 2, as it was written by the code of that version.
BEGIN TRANSACTION;
CREATE TABLE activation (
	kind VARCHAR NOT NULL, 
	"key" VARCHAR NOT NULL, 
	due_us BIGINT NOT NULL, 
	seq BIGINT DEFAULT '0' NOT NULL, 
	lock_token VARCHAR, 
	lock_owner VARCHAR, 
	lock_expires_us BIGINT, 
	fails INTEGER DEFAULT '0' NOT NULL, 
	PRIMARY KEY (kind, "key")
);
INSERT INTO "activation" VALUES('endpoint','e1',6000000,0,NULL,NULL,NULL,0);
CREATE TABLE api_key (
	id VARCHAR NOT NULL, 
	workspace_id VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	digest VARCHAR NOT NULL, 
	scopes TEXT NOT NULL, 
	endpoints TEXT, 
	created_at FLOAT NOT NULL, 
	expires_at FLOAT, 
	last_used_at FLOAT, 
	revoked_at FLOAT, 
	PRIMARY KEY (id), 
	FOREIGN KEY(workspace_id) REFERENCES workspace (id), 
	UNIQUE (digest)
);
INSERT INTO "api_key" VALUES('k1','w1','mine','d1','["call"]',NULL,1.0,NULL,NULL,NULL);
CREATE TABLE capacity (
	id VARCHAR NOT NULL, 
	workspace_id VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	kind VARCHAR NOT NULL, 
	by_sku TEXT NOT NULL, 
	generation INTEGER DEFAULT '0' NOT NULL, 
	created_at FLOAT NOT NULL, 
	updated_at FLOAT NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(workspace_id) REFERENCES workspace (id)
);
INSERT INTO "capacity" VALUES('c1','w1','default','market','{"s1":{"entries":[{"window":{"start_at":0,"end_at":null},"node_count":4}]}}',0,1.0,1.0);
CREATE TABLE deployment (
	id VARCHAR NOT NULL, 
	endpoint_id VARCHAR NOT NULL, 
	workspace_id VARCHAR NOT NULL, 
	capacity_id VARCHAR NOT NULL, 
	revision_id VARCHAR NOT NULL, 
	target_instance_count INTEGER DEFAULT '0' NOT NULL, 
	generation INTEGER DEFAULT '0' NOT NULL, 
	reasons TEXT NOT NULL, 
	fails INTEGER DEFAULT '0' NOT NULL, 
	not_before FLOAT DEFAULT '0' NOT NULL, 
	created_at FLOAT NOT NULL, 
	updated_at FLOAT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (endpoint_id), 
	FOREIGN KEY(endpoint_id) REFERENCES endpoint (id) ON DELETE CASCADE, 
	FOREIGN KEY(workspace_id) REFERENCES workspace (id), 
	FOREIGN KEY(capacity_id) REFERENCES capacity (id)
);
INSERT INTO "deployment" VALUES('d1','e1','w1','c1','r1',2,1,'[]',0,0.0,5.0,5.0);
INSERT INTO "deployment" VALUES('d2','e2','w1','c1','r2',0,0,'[]',0,0.0,6.0,6.0);
INSERT INTO "deployment" VALUES('d3','e3','w1','c1','r3',0,0,'[]',0,0.0,7.0,7.0);
INSERT INTO "deployment" VALUES('d4','e4','w1','c1','r4',0,0,'[]',0,0.0,10.0,10.0);
CREATE TABLE endpoint (
	id VARCHAR NOT NULL, 
	workspace_id VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	tag VARCHAR NOT NULL, 
	kind VARCHAR NOT NULL, 
	generation INTEGER DEFAULT '0' NOT NULL, 
	revision_id VARCHAR NOT NULL, 
	scale TEXT NOT NULL, 
	scale_fingerprint VARCHAR DEFAULT '' NOT NULL, 
	target INTEGER DEFAULT '-1' NOT NULL, 
	reasons TEXT NOT NULL, 
	scale_state BLOB NOT NULL, 
	failure TEXT, 
	ttl_s FLOAT, 
	version_label VARCHAR DEFAULT '' NOT NULL, 
	heartbeat_at FLOAT NOT NULL, 
	created_at FLOAT NOT NULL, 
	updated_at FLOAT NOT NULL, 
	deleted_at FLOAT, 
	PRIMARY KEY (id), 
	FOREIGN KEY(workspace_id) REFERENCES workspace (id)
);
INSERT INTO "endpoint" VALUES('e1','w1','square','default','function',0,'r1','{"cold_workers":1,"max_workers":16,"min_load":1.0,"min_cold_load":0.0,"target_util":0.9,"cold_mult":3.0,"max_queue_time":30.0,"target_queue_time":10.0,"inactivity_timeout":null,"target_concurrency":null}','',-1,'[]',X'',NULL,NULL,'',5.0,5.0,5.0,NULL);
INSERT INTO "endpoint" VALUES('e2','w1','square','dev','function',0,'r2','{"cold_workers":1,"max_workers":16,"min_load":1.0,"min_cold_load":0.0,"target_util":0.9,"cold_mult":3.0,"max_queue_time":30.0,"target_queue_time":10.0,"inactivity_timeout":null,"target_concurrency":null}','',-1,'[]',X'',NULL,NULL,'',6.0,6.0,6.0,NULL);
INSERT INTO "endpoint" VALUES('e3','w1','gone','default','function',1,'r3','{"cold_workers":1,"max_workers":16,"min_load":1.0,"min_cold_load":0.0,"target_util":0.9,"cold_mult":3.0,"max_queue_time":30.0,"target_queue_time":10.0,"inactivity_timeout":null,"target_concurrency":null}','',-1,'[]',X'',NULL,NULL,'',7.0,7.0,7.0,9.0);
INSERT INTO "endpoint" VALUES('e4','w1','gone','default','function',0,'r4','{"cold_workers":1,"max_workers":16,"min_load":1.0,"min_cold_load":0.0,"target_util":0.9,"cold_mult":3.0,"max_queue_time":30.0,"target_queue_time":10.0,"inactivity_timeout":null,"target_concurrency":null}','',-1,'[]',X'',NULL,NULL,'',10.0,10.0,10.0,NULL);
CREATE TABLE event (
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	at FLOAT NOT NULL, 
	kind VARCHAR NOT NULL, 
	"key" VARCHAR NOT NULL, 
	endpoint_id VARCHAR NOT NULL, 
	message TEXT NOT NULL
);
INSERT INTO "event" VALUES(1,6.0,'endpoint','e1','e1','hello');
CREATE TABLE instance (
	id VARCHAR NOT NULL, 
	deployment_id VARCHAR NOT NULL, 
	endpoint_id VARCHAR NOT NULL, 
	workspace_id VARCHAR NOT NULL, 
	revision_id VARCHAR NOT NULL, 
	capacity_id VARCHAR NOT NULL, 
	node_id VARCHAR, 
	epoch INTEGER NOT NULL, 
	generation INTEGER DEFAULT '0' NOT NULL, 
	intent VARCHAR NOT NULL, 
	phase VARCHAR NOT NULL, 
	slots INTEGER NOT NULL, 
	pid INTEGER, 
	exit_code INTEGER, 
	reason TEXT DEFAULT '' NOT NULL, 
	failure TEXT, 
	fails INTEGER DEFAULT '0' NOT NULL, 
	not_before FLOAT DEFAULT '0' NOT NULL, 
	ready_at FLOAT, 
	created_at FLOAT NOT NULL, 
	ended_at FLOAT, 
	PRIMARY KEY (id), 
	FOREIGN KEY(workspace_id) REFERENCES workspace (id)
);
INSERT INTO "instance" VALUES('i_b','d1','e1','w1','r1','c1','n1',1,1,'run','ready',3,NULL,NULL,'',NULL,0,0.0,22.0,20.0,NULL);
INSERT INTO "instance" VALUES('i_a','d1','e1','w1','r1','c1',NULL,1,0,'run','queued',3,NULL,NULL,'',NULL,0,0.0,NULL,21.0,NULL);
INSERT INTO "instance" VALUES('i_c','d1','e1','w1','r1','c1',NULL,1,1,'run','ended',3,NULL,NULL,'',NULL,0,0.0,NULL,19.0,30.0);
CREATE TABLE invoice (
	id VARCHAR NOT NULL, 
	workspace_id VARCHAR NOT NULL, 
	issuer VARCHAR NOT NULL, 
	month VARCHAR NOT NULL, 
	number INTEGER, 
	status VARCHAR NOT NULL, 
	document TEXT NOT NULL, 
	updated_us BIGINT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE ledger_account (
	id VARCHAR NOT NULL, 
	guarded BOOLEAN NOT NULL, 
	debits_pending BIGINT DEFAULT '0' NOT NULL, 
	debits_posted BIGINT DEFAULT '0' NOT NULL, 
	credits_pending BIGINT DEFAULT '0' NOT NULL, 
	credits_posted BIGINT DEFAULT '0' NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "ledger_account" VALUES('cash',0,0,10000,0,0);
INSERT INTO "ledger_account" VALUES('prepaid:w1',1,0,0,0,10000);
CREATE TABLE ledger_entry (
	seq INTEGER NOT NULL, 
	id BLOB NOT NULL, 
	kind VARCHAR NOT NULL, 
	linked BOOLEAN NOT NULL, 
	balancing BOOLEAN NOT NULL, 
	debit VARCHAR NOT NULL, 
	credit VARCHAR NOT NULL, 
	asked BIGINT NOT NULL, 
	amount BIGINT NOT NULL, 
	pending_id BLOB, 
	timeout_s INTEGER NOT NULL, 
	code VARCHAR NOT NULL, 
	ref VARCHAR NOT NULL, 
	at_us BIGINT NOT NULL, 
	expires_at_us BIGINT, 
	settled VARCHAR, 
	PRIMARY KEY (seq), 
	UNIQUE (id)
);
INSERT INTO "ledger_entry" VALUES(1,X'81BF3A1993C90948DD35B05BEB0D77B8','single',0,0,'cash','prepaid:w1',10000,10000,NULL,0,'top_up','p',1000000,NULL,NULL);
CREATE TABLE ledger_failed (
	id BLOB NOT NULL, 
	outcome VARCHAR NOT NULL, 
	at_us BIGINT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE node (
	id VARCHAR NOT NULL, 
	machine_id VARCHAR NOT NULL, 
	sku_id VARCHAR NOT NULL, 
	slots INTEGER NOT NULL, 
	state VARCHAR NOT NULL, 
	seen_at FLOAT NOT NULL, 
	boot_id VARCHAR DEFAULT '' NOT NULL, 
	version VARCHAR DEFAULT '' NOT NULL, 
	inventory TEXT NOT NULL, 
	created_at FLOAT NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(sku_id) REFERENCES sku (id)
);
INSERT INTO "node" VALUES('n1','m1','s1',4,'up',7.0,'boot','0','{"vcpus":2}',7.0);
CREATE TABLE revision (
	id VARCHAR NOT NULL, 
	endpoint_id VARCHAR NOT NULL, 
	number INTEGER NOT NULL, 
	spec TEXT NOT NULL, 
	model_id VARCHAR, 
	failures INTEGER DEFAULT '0' NOT NULL, 
	failure TEXT, 
	healthy_at FLOAT, 
	created_at FLOAT NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(endpoint_id) REFERENCES endpoint (id) ON DELETE CASCADE
);
INSERT INTO "revision" VALUES('r1','e1',1,'{"name":"square","tag":"default","kind":"function","bundle":"0000000000000000000000000000000000000000000000000000000000000000","bundle_bytes":0,"module":"deployment","functions":[{"name":"square","kind":"async","concurrency":1,"idempotent":false,"timeout_s":600.0,"queue_timeout_s":900.0,"max_queue_time_s":30.0,"benchmark":false}],"image":{"from_image":"","env":{},"apt_get":[],"pip_install":[],"runs":[],"copies":[],"python":null,"storage_gb":50,"ports":[[3000,"tcp"]],"query":{}},"model":null,"scale":{"cold_workers":1,"max_workers":16,"min_load":1.0,"min_cold_load":0.0,"target_util":0.9,"cold_mult":3.0,"max_queue_time":30.0,"target_queue_time":10.0,"inactivity_timeout":null,"target_concurrency":null},"ttl_s":null,"version_label":"","fingerprints":{"code":"","image":"","scale":""},"serializer":"native","isolation":"process"}',NULL,0,NULL,NULL,5.0);
INSERT INTO "revision" VALUES('r2','e2',1,'{"name":"square","tag":"dev","kind":"function","bundle":"0000000000000000000000000000000000000000000000000000000000000000","bundle_bytes":0,"module":"deployment","functions":[{"name":"square","kind":"async","concurrency":1,"idempotent":false,"timeout_s":600.0,"queue_timeout_s":900.0,"max_queue_time_s":30.0,"benchmark":false}],"image":{"from_image":"","env":{},"apt_get":[],"pip_install":[],"runs":[],"copies":[],"python":null,"storage_gb":50,"ports":[[3000,"tcp"]],"query":{}},"model":null,"scale":{"cold_workers":1,"max_workers":16,"min_load":1.0,"min_cold_load":0.0,"target_util":0.9,"cold_mult":3.0,"max_queue_time":30.0,"target_queue_time":10.0,"inactivity_timeout":null,"target_concurrency":null},"ttl_s":null,"version_label":"","fingerprints":{"code":"","image":"","scale":""},"serializer":"native","isolation":"process"}',NULL,0,NULL,NULL,5.0);
INSERT INTO "revision" VALUES('r3','e3',1,'{"name":"gone","tag":"default","kind":"function","bundle":"0000000000000000000000000000000000000000000000000000000000000000","bundle_bytes":0,"module":"deployment","functions":[{"name":"square","kind":"async","concurrency":1,"idempotent":false,"timeout_s":600.0,"queue_timeout_s":900.0,"max_queue_time_s":30.0,"benchmark":false}],"image":{"from_image":"","env":{},"apt_get":[],"pip_install":[],"runs":[],"copies":[],"python":null,"storage_gb":50,"ports":[[3000,"tcp"]],"query":{}},"model":null,"scale":{"cold_workers":1,"max_workers":16,"min_load":1.0,"min_cold_load":0.0,"target_util":0.9,"cold_mult":3.0,"max_queue_time":30.0,"target_queue_time":10.0,"inactivity_timeout":null,"target_concurrency":null},"ttl_s":null,"version_label":"","fingerprints":{"code":"","image":"","scale":""},"serializer":"native","isolation":"process"}',NULL,0,NULL,NULL,5.0);
INSERT INTO "revision" VALUES('r4','e4',1,'{"name":"square","tag":"default","kind":"function","bundle":"0000000000000000000000000000000000000000000000000000000000000000","bundle_bytes":0,"module":"deployment","functions":[{"name":"square","kind":"async","concurrency":1,"idempotent":false,"timeout_s":600.0,"queue_timeout_s":900.0,"max_queue_time_s":30.0,"benchmark":false}],"image":{"from_image":"","env":{},"apt_get":[],"pip_install":[],"runs":[],"copies":[],"python":null,"storage_gb":50,"ports":[[3000,"tcp"]],"query":{}},"model":null,"scale":{"cold_workers":1,"max_workers":16,"min_load":1.0,"min_cold_load":0.0,"target_util":0.9,"cold_mult":3.0,"max_queue_time":30.0,"target_queue_time":10.0,"inactivity_timeout":null,"target_concurrency":null},"ttl_s":null,"version_label":"","fingerprints":{"code":"","image":"","scale":""},"serializer":"native","isolation":"process"}',NULL,0,NULL,NULL,10.0);
CREATE TABLE setting (
	name VARCHAR NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "setting" VALUES('cluster_id','clus1');
CREATE TABLE sku (
	id VARCHAR NOT NULL, 
	alias VARCHAR NOT NULL, 
	properties TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "sku" VALUES('s1','cpu','{"sku_id":"s1","alias":"cpu","accelerator":"none","num_accelerators":0,"accelerator_memory":0,"num_vcpus":0,"memory":0,"local_storage":0,"region":"local","availability_zone":"local-a","form_factor":"none","rdma_type":"none","provider":"local","federated":false,"max_watts":0,"supports_public_ipv4":false,"latency_class":"lan"}');
CREATE TABLE usage_record (
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	record_id VARCHAR NOT NULL, 
	request_id VARCHAR NOT NULL, 
	workspace_id VARCHAR NOT NULL, 
	key_id VARCHAR NOT NULL, 
	endpoint_id VARCHAR NOT NULL, 
	revision_id VARCHAR NOT NULL, 
	instance_id VARCHAR NOT NULL, 
	kind VARCHAR NOT NULL, 
	status INTEGER NOT NULL, 
	prompt_tokens INTEGER NOT NULL, 
	completion_tokens INTEGER NOT NULL, 
	compute_us INTEGER NOT NULL, 
	t_arrival FLOAT NOT NULL, 
	t_first FLOAT NOT NULL, 
	t_end FLOAT NOT NULL, 
	moves INTEGER NOT NULL, 
	function VARCHAR NOT NULL, 
	UNIQUE (record_id)
);
CREATE TABLE workspace (
	id VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	created_at FLOAT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (name)
);
INSERT INTO "workspace" VALUES('w1','default',1.0);
CREATE INDEX usage_time ON usage_record (workspace_id, t_end);
CREATE INDEX activation_due ON activation (kind, due_us);
CREATE INDEX event_endpoint ON event (endpoint_id, seq);
CREATE INDEX ledger_entry_debit ON ledger_entry (debit, at_us, seq);
CREATE INDEX ledger_entry_credit ON ledger_entry (credit, at_us, seq);
CREATE INDEX ledger_entry_due ON ledger_entry (expires_at_us) WHERE settled IS NULL AND expires_at_us IS NOT NULL;
CREATE INDEX ledger_entry_ref ON ledger_entry (ref);
CREATE UNIQUE INDEX invoice_number ON invoice (issuer, number);
CREATE INDEX invoice_workspace ON invoice (workspace_id, month);
CREATE INDEX node_machine ON node (machine_id);
CREATE UNIQUE INDEX capacity_name ON capacity (workspace_id, name);
CREATE UNIQUE INDEX endpoint_name ON endpoint (workspace_id, name, tag) WHERE deleted_at IS NULL;
CREATE INDEX instance_endpoint ON instance (endpoint_id, ended_at);
CREATE INDEX instance_node ON instance (node_id, ended_at);
CREATE INDEX instance_created ON instance (workspace_id, created_at);
CREATE UNIQUE INDEX revision_endpoint ON revision (endpoint_id, number);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('event',1);
PRAGMA user_version = 2;
COMMIT;
