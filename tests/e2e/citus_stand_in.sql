-- A stand-in for Citus 13 in plain PostgreSQL: its catalogs, the functions that are used here, its locks, notices and errors.
-- It is no Citus: rows are not routed, and a shard is copied as a whole when it moves. What it answers, Citus answers as well.
CREATE EXTENSION dblink;
CREATE SCHEMA citus;
GRANT USAGE ON SCHEMA citus TO PUBLIC;
SET search_path = citus, public;
CREATE TYPE noderole AS ENUM ('primary', 'secondary', 'unavailable');
CREATE TYPE citus_job_status AS ENUM ('scheduled', 'running', 'finished', 'cancelling', 'cancelled', 'failing', 'failed');
CREATE TABLE pg_dist_node (nodeid serial PRIMARY KEY, groupid int NOT NULL, nodename text NOT NULL, nodeport int NOT NULL, noderack text NOT NULL DEFAULT 'default', hasmetadata boolean NOT NULL DEFAULT true,
  isactive boolean NOT NULL DEFAULT true, noderole noderole NOT NULL DEFAULT 'primary', nodecluster name NOT NULL DEFAULT 'default', metadatasynced boolean DEFAULT true, shouldhaveshards boolean NOT NULL DEFAULT true, UNIQUE (nodename, nodeport));
CREATE TABLE pg_dist_partition (logicalrelid regclass NOT NULL UNIQUE, partmethod "char" NOT NULL, partkey text, colocationid int NOT NULL DEFAULT 0, repmodel "char" NOT NULL DEFAULT 's', autoconverted boolean DEFAULT false);
CREATE TABLE pg_dist_shard (logicalrelid regclass NOT NULL, shardid bigint NOT NULL UNIQUE, shardstorage "char" NOT NULL DEFAULT 't', shardminvalue text, shardmaxvalue text);
CREATE TABLE pg_dist_placement (placementid bigserial, shardid bigint NOT NULL, shardstate int NOT NULL DEFAULT 1, shardlength bigint NOT NULL DEFAULT 0, groupid int NOT NULL, UNIQUE (shardid, groupid));
CREATE TABLE pg_dist_colocation (colocationid int PRIMARY KEY, shardcount int NOT NULL, replicationfactor int NOT NULL DEFAULT 1, distributioncolumntype oid NOT NULL, distributioncolumncollation oid NOT NULL DEFAULT 0);
CREATE TABLE pg_dist_cleanup (record_id bigserial PRIMARY KEY, operation_id bigint NOT NULL DEFAULT 0, object_type int NOT NULL DEFAULT 1, object_name text NOT NULL, node_group_id int NOT NULL, policy_type int NOT NULL DEFAULT 2);
CREATE TABLE pg_dist_schema (schemaid oid NOT NULL, colocationid int NOT NULL UNIQUE);
CREATE TABLE pg_dist_background_job (job_id bigserial PRIMARY KEY, state citus_job_status NOT NULL DEFAULT 'scheduled', job_type name NOT NULL, description text NOT NULL, started_at timestamptz, finished_at timestamptz);
CREATE SEQUENCE pg_dist_shardid_seq START 102008;
CREATE SEQUENCE pg_dist_colocationid_seq;
CREATE SEQUENCE pg_dist_groupid_seq;
-- What the test says how long a move takes, in seconds, and which one fails.
CREATE TABLE stand_in (is_coordinator boolean NOT NULL DEFAULT false, move_seconds float8 NOT NULL DEFAULT 0, move_fails text);
INSERT INTO stand_in DEFAULT VALUES;
GRANT SELECT ON ALL TABLES IN SCHEMA citus TO PUBLIC;

CREATE FUNCTION citus_is_coordinator() RETURNS boolean LANGUAGE sql STABLE AS 'SELECT is_coordinator FROM stand_in';
CREATE FUNCTION column_to_column_name(table_name regclass, column_var_text text) RETURNS text LANGUAGE sql STABLE STRICT AS 'SELECT $2';
CREATE FUNCTION shard_name(object_name regclass, shard_id bigint) RETURNS text LANGUAGE sql STABLE STRICT AS
  $$SELECT CASE WHEN nspname = 'public' THEN '' ELSE quote_ident(nspname) || '.' END || quote_ident(relname || '_' || $2) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = $1$$;
CREATE FUNCTION worker_hash(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT hashint4($1)';
CREATE FUNCTION worker_hash(bigint) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT hashint8($1)';
CREATE FUNCTION worker_hash(text) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT hashtext($1)';

CREATE FUNCTION must_be_coordinator() RETURNS void LANGUAGE plpgsql AS $$BEGIN
  IF NOT citus_is_coordinator() THEN RAISE 'operation is not allowed on this node' USING HINT = 'Connect to the coordinator and run it again.', ERRCODE = 'XX000'; END IF;
END$$;
CREATE FUNCTION must_be_superuser(what text) RETURNS void LANGUAGE plpgsql AS $$BEGIN
  PERFORM must_be_coordinator();
  IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = session_user) THEN RAISE 'permission denied for function %', what USING ERRCODE = '42501'; END IF;
END$$;
CREATE FUNCTION must_own(tab regclass) RETURNS void LANGUAGE plpgsql AS $$BEGIN
  PERFORM must_be_coordinator();
  IF NOT (SELECT pg_has_role(session_user, relowner, 'USAGE') FROM pg_class WHERE oid = tab) THEN RAISE 'must be owner of table %', (SELECT relname FROM pg_class WHERE oid = tab) USING ERRCODE = '42501'; END IF;
END$$;
-- How a node is reached, as its superuser: all of them are on this machine, whatever they are called.
CREATE FUNCTION at_node(host text, port int) RETURNS text LANGUAGE sql STABLE AS
  $$SELECT format('host=127.0.0.1 port=%s dbname=%s user=%s connect_timeout=5 application_name=citus_internal', $2, current_database(), (SELECT rolname FROM pg_roles WHERE oid = 10))$$;

CREATE FUNCTION run_command_on_all_nodes(command text, parallel boolean DEFAULT true, give_warning_for_connection_errors boolean DEFAULT false) RETURNS TABLE (nodeid int, success boolean, result text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = citus, public AS $$
DECLARE n record;
BEGIN
  FOR n IN SELECT * FROM pg_dist_node WHERE isactive AND noderole = 'primary' ORDER BY pg_dist_node.nodeid LOOP
    nodeid := n.nodeid;
    BEGIN
      SELECT r INTO result FROM dblink(at_node(n.nodename, n.nodeport), format('SET SESSION AUTHORIZATION %I; ', session_user) || 'SET search_path = citus, public; ' || command) AS t(r text);
      success := true;
    EXCEPTION WHEN OTHERS THEN
      success := false;
      result := CASE WHEN sqlstate = '08001' THEN format('failed to connect to %s:%s', n.nodename, n.nodeport) ELSE sqlerrm END;
    END;
    RETURN NEXT;
  END LOOP;
END$$;
CREATE FUNCTION run_command_on_workers(command text, parallel boolean DEFAULT true, OUT nodename text, OUT nodeport int, OUT success boolean, OUT result text) RETURNS SETOF record LANGUAGE sql AS
  $$SELECT n.nodename, n.nodeport, a.success, a.result FROM run_command_on_all_nodes($1) a JOIN pg_dist_node n USING (nodeid) WHERE n.groupid > 0$$;
-- A statement on every other active node, which fails where one is down.
CREATE FUNCTION on_workers(command text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = citus, public AS $$
DECLARE n record;
BEGIN
  FOR n IN SELECT * FROM pg_dist_node WHERE isactive AND groupid > 0 AND noderole = 'primary' LOOP
    BEGIN
      PERFORM dblink_exec(at_node(n.nodename, n.nodeport), 'SET search_path = citus, public; ' || command);
    EXCEPTION WHEN sqlclient_unable_to_establish_sqlconnection THEN
      RAISE 'connection to the remote node %:% failed with the following error: Connection refused', n.nodename, n.nodeport USING ERRCODE = '08006';
    END;
  END LOOP;
END$$;

-- The text that makes a table like another, without its rows.
CREATE FUNCTION made_like(tab regclass, name text) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT format('CREATE SCHEMA IF NOT EXISTS %I; CREATE TABLE IF NOT EXISTS %I.%I (%s%s)', n.nspname, n.nspname, name,
    (SELECT string_agg(format('%I %s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = tab AND attnum > 0 AND NOT attisdropped),
    coalesce((SELECT ', PRIMARY KEY (' || string_agg(format('%I', a.attname), ', ' ORDER BY k.at) || ')' FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k(num, at), pg_attribute a WHERE i.indrelid = tab AND i.indisprimary AND a.attrelid = tab AND a.attnum = k.num GROUP BY i.indrelid), ''))
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = tab$$;
CREATE FUNCTION called(tab regclass) RETURNS text LANGUAGE sql STABLE AS $$SELECT quote_ident(nspname) || '.' || quote_ident(relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = $1$$;
-- What tells another node everything that is known here.
CREATE FUNCTION told() RETURNS text LANGUAGE sql STABLE AS $$
  SELECT concat_ws('; ', 'TRUNCATE pg_dist_partition, pg_dist_shard, pg_dist_placement, pg_dist_node',
    (SELECT string_agg(made_like(logicalrelid, (SELECT relname FROM pg_class WHERE oid = logicalrelid)), '; ') FROM pg_dist_partition),
    (SELECT string_agg(format('INSERT INTO pg_dist_partition VALUES (%L, %L, %L, %s, %L)', called(logicalrelid), partmethod, partkey, colocationid, repmodel), '; ') FROM pg_dist_partition),
    (SELECT string_agg(format('INSERT INTO pg_dist_shard VALUES (%L, %s, ''t'', %L, %L)', called(logicalrelid), shardid, shardminvalue, shardmaxvalue), '; ') FROM pg_dist_shard))$$;
CREATE FUNCTION tell() RETURNS void LANGUAGE sql AS 'SELECT on_workers(told())';

CREATE FUNCTION citus_set_coordinator_host(host text, port int DEFAULT 5432) RETURNS void LANGUAGE plpgsql AS $$BEGIN
  PERFORM must_be_superuser('citus_set_coordinator_host');
  INSERT INTO pg_dist_node (groupid, nodename, nodeport, shouldhaveshards) VALUES (0, host, port, false) ON CONFLICT DO NOTHING;
END$$;
CREATE FUNCTION citus_add_node(host text, port int, groupid int DEFAULT -1, noderole noderole DEFAULT 'primary', nodecluster name DEFAULT 'default') RETURNS int LANGUAGE plpgsql AS $$
DECLARE id int;
BEGIN
  PERFORM must_be_superuser('citus_add_node');
  SELECT nodeid INTO id FROM pg_dist_node n WHERE n.nodename = host AND n.nodeport = port;
  IF id IS NOT NULL THEN RETURN id; END IF;
  BEGIN
    IF noderole = 'primary' AND NOT EXISTS (SELECT FROM dblink(at_node(host, port), $q$SELECT 1 FROM pg_extension WHERE extname = 'citus'$q$) AS t(x int)) THEN
      RAISE 'failure on connection marked as essential: %:%', host, port USING ERRCODE = 'XX000';
    END IF;
  EXCEPTION WHEN sqlclient_unable_to_establish_sqlconnection THEN
    RAISE 'connection to the remote node %:% failed with the following error: %', host, port, sqlerrm USING ERRCODE = '08006';
  END;
  INSERT INTO pg_dist_node (groupid, nodename, nodeport, noderole) VALUES (CASE WHEN $3 < 0 THEN nextval('pg_dist_groupid_seq') ELSE $3 END, host, port, $4) RETURNING nodeid INTO id;
  PERFORM tell();
  RETURN id;
END$$;
CREATE FUNCTION node_of(host text, port int) RETURNS pg_dist_node LANGUAGE plpgsql STABLE AS $$
DECLARE n pg_dist_node;
BEGIN
  SELECT * INTO n FROM pg_dist_node WHERE nodename = host AND nodeport = port;
  IF n.nodeid IS NULL THEN RAISE 'node at "%:%" does not exist', host, port USING ERRCODE = 'XX000'; END IF;
  RETURN n;
END$$;
CREATE FUNCTION citus_activate_node(host text, port int) RETURNS int LANGUAGE plpgsql AS $$BEGIN
  PERFORM must_be_superuser('citus_activate_node');
  UPDATE pg_dist_node SET isactive = true WHERE nodeid = (node_of(host, port)).nodeid;
  PERFORM tell();
  RETURN (node_of(host, port)).nodeid;
END$$;
CREATE FUNCTION citus_remove_node(host text, port int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE n pg_dist_node := node_of(host, port); held record;
BEGIN
  PERFORM must_be_superuser('citus_remove_node');
  SELECT s.shardid, s.logicalrelid INTO held FROM pg_dist_placement p JOIN pg_dist_shard s USING (shardid) JOIN pg_dist_partition t USING (logicalrelid) WHERE p.groupid = n.groupid AND t.repmodel <> 't' LIMIT 1;
  IF held.shardid IS NOT NULL AND n.noderole = 'primary' THEN
    RAISE 'cannot remove or disable the node %:% because because it contains the only shard placement for shard %', host, port, held.shardid
      USING DETAIL = 'One of the table(s) that prevents the operation complete successfully is ' || called(held.logicalrelid), HINT = 'To proceed, either drop the tables or use undistribute_table() function to convert them to local tables', ERRCODE = 'XX000';
  END IF;
  IF n.noderole = 'primary' THEN DELETE FROM pg_dist_placement WHERE groupid = n.groupid; END IF;
  DELETE FROM pg_dist_node WHERE nodeid = n.nodeid;
END$$;
CREATE FUNCTION citus_set_node_property(host text, port int, property text, value boolean) RETURNS void LANGUAGE plpgsql AS $$BEGIN
  PERFORM must_be_superuser('citus_set_node_property');
  IF property <> 'shouldhaveshards' THEN RAISE 'only the ''shouldhaveshards'' property can be set using this function'; END IF;
  UPDATE pg_dist_node SET shouldhaveshards = value WHERE nodeid = (node_of(host, port)).nodeid;
END$$;
CREATE FUNCTION citus_check_cluster_node_health() RETURNS TABLE (from_nodename text, from_nodeport int, to_nodename text, to_nodeport int, result boolean) LANGUAGE sql AS
  $$SELECT a.nodename, a.nodeport, b.nodename, b.nodeport, r.success FROM pg_dist_node a CROSS JOIN pg_dist_node b LEFT JOIN run_command_on_all_nodes('SELECT 1') r ON r.nodeid = b.nodeid WHERE a.noderole = 'primary' AND b.noderole = 'primary'$$;

-- Makes the shards of a table, on the nodes of what it lies with or in turn.
CREATE FUNCTION make_shards(tab regclass, count int, colocation int) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = citus, public AS $$
DECLARE span bigint := 4294967296 / count; shard bigint; place int; n record; other bigint; low bigint;
BEGIN
  FOR i IN 0..count - 1 LOOP
    shard := nextval('pg_dist_shardid_seq');
    low := -2147483648 + i * span;
    INSERT INTO pg_dist_shard VALUES (tab, shard, 't', low, CASE WHEN i = count - 1 THEN 2147483647 ELSE low + span - 1 END);
    SELECT s.shardid INTO other FROM pg_dist_shard s JOIN pg_dist_partition p USING (logicalrelid) WHERE p.colocationid = colocation AND s.shardminvalue = low::text AND s.logicalrelid <> tab LIMIT 1;
    SELECT groupid INTO place FROM pg_dist_placement WHERE shardid = other;
    IF place IS NULL THEN
      SELECT groupid INTO place FROM (SELECT groupid, row_number() OVER (ORDER BY groupid) - 1 AS at, count(*) OVER () AS all FROM pg_dist_node WHERE isactive AND shouldhaveshards AND noderole = 'primary') x WHERE at = i % x.all;
    END IF;
    SELECT * INTO n FROM pg_dist_node WHERE groupid = place AND noderole = 'primary';
    PERFORM dblink_exec(at_node(n.nodename, n.nodeport), made_like(tab, (SELECT relname FROM pg_class WHERE oid = tab) || '_' || shard));
    INSERT INTO pg_dist_placement (shardid, groupid) VALUES (shard, place);
    place := NULL;
    other := NULL;
  END LOOP;
END$$;
CREATE FUNCTION create_distributed_table(table_name regclass, distribution_column text, distribution_type text DEFAULT 'hash', colocate_with text DEFAULT 'default', shard_count int DEFAULT NULL) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = citus, public AS $$
DECLARE colocation int; count int; kind oid;
BEGIN
  PERFORM must_own(table_name);
  IF EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = table_name) THEN RAISE 'table "%" is already distributed', (SELECT relname FROM pg_class WHERE oid = table_name) USING ERRCODE = '42P16'; END IF;
  SELECT atttypid INTO kind FROM pg_attribute WHERE attrelid = table_name AND attname = distribution_column;
  IF kind IS NULL THEN RAISE 'column "%" of relation "%" does not exist', distribution_column, (SELECT relname FROM pg_class WHERE oid = table_name) USING ERRCODE = '42703'; END IF;
  count := coalesce(shard_count, current_setting('citus.shard_count')::int);
  IF colocate_with = 'default' THEN
    SELECT colocationid INTO colocation FROM pg_dist_colocation WHERE shardcount = count AND distributioncolumntype = kind ORDER BY 1 LIMIT 1;
  ELSIF colocate_with <> 'none' THEN
    SELECT colocationid INTO colocation FROM pg_dist_partition WHERE logicalrelid = colocate_with::regclass;
    SELECT shardcount INTO count FROM pg_dist_colocation WHERE colocationid = colocation;
  END IF;
  IF colocation IS NULL THEN
    colocation := nextval('pg_dist_colocationid_seq');
    INSERT INTO pg_dist_colocation VALUES (colocation, count, 1, kind);
  END IF;
  INSERT INTO pg_dist_partition VALUES (table_name, 'h', distribution_column, colocation, 's');
  PERFORM make_shards(table_name, count, colocation);
  PERFORM tell();
END$$;
CREATE FUNCTION create_distributed_table_concurrently(table_name regclass, distribution_column text, distribution_type text DEFAULT 'hash', colocate_with text DEFAULT 'default', shard_count int DEFAULT NULL) RETURNS void LANGUAGE sql AS
  'SELECT create_distributed_table($1, $2, $3, $4, $5)';
-- A shard of its own on a node.
CREATE FUNCTION place_reference(tab regclass, shard bigint, n pg_dist_node) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = citus, public AS $$BEGIN
  PERFORM dblink_exec(at_node(n.nodename, n.nodeport), made_like(tab, (SELECT relname FROM pg_class WHERE oid = tab) || '_' || shard));
  INSERT INTO pg_dist_placement (shardid, groupid) VALUES (shard, n.groupid);
END$$;
CREATE FUNCTION create_reference_table(table_name regclass) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = citus, public AS $$
DECLARE shard bigint := nextval('pg_dist_shardid_seq');
BEGIN
  PERFORM must_own(table_name);
  INSERT INTO pg_dist_partition VALUES (table_name, 'n', NULL, 1000, 't');
  INSERT INTO pg_dist_shard VALUES (table_name, shard);
  PERFORM place_reference(table_name, shard, n) FROM pg_dist_node n WHERE isactive AND noderole = 'primary';
  PERFORM tell();
END$$;
CREATE FUNCTION replicate_reference_tables(shard_transfer_mode text DEFAULT 'auto') RETURNS void LANGUAGE plpgsql AS $$BEGIN
  PERFORM must_be_superuser('replicate_reference_tables');
  PERFORM place_reference(s.logicalrelid, s.shardid, n) FROM pg_dist_node n, pg_dist_partition t JOIN pg_dist_shard s USING (logicalrelid)
    WHERE n.isactive AND n.noderole = 'primary' AND t.repmodel = 't' AND NOT EXISTS (SELECT FROM pg_dist_placement p WHERE p.shardid = s.shardid AND p.groupid = n.groupid);
END$$;
CREATE FUNCTION undistribute_table(table_name regclass, cascade_via_foreign_keys boolean DEFAULT false) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = citus, public AS $$BEGIN
  PERFORM must_own(table_name);
  DELETE FROM pg_dist_placement WHERE shardid IN (SELECT shardid FROM pg_dist_shard WHERE logicalrelid = table_name);
  DELETE FROM pg_dist_shard WHERE logicalrelid = table_name;
  DELETE FROM pg_dist_partition WHERE logicalrelid = table_name;
END$$;
CREATE FUNCTION alter_distributed_table(table_name regclass, distribution_column text DEFAULT NULL, shard_count int DEFAULT NULL, colocate_with text DEFAULT NULL, cascade_to_colocated boolean DEFAULT NULL) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = citus, public AS $$
DECLARE was record; other record; anchor text;
BEGIN
  PERFORM must_own(table_name);
  SELECT p.*, c.shardcount INTO was FROM pg_dist_partition p JOIN pg_dist_colocation c USING (colocationid) WHERE logicalrelid = table_name;
  FOR other IN SELECT * FROM pg_dist_partition WHERE colocationid = was.colocationid AND (logicalrelid = table_name OR cascade_to_colocated) ORDER BY logicalrelid = table_name DESC LOOP
    PERFORM undistribute_table(other.logicalrelid);
    PERFORM create_distributed_table(other.logicalrelid, CASE WHEN other.logicalrelid = table_name THEN coalesce(distribution_column, other.partkey) ELSE other.partkey END, 'hash', coalesce(colocate_with, anchor, 'none'), coalesce(shard_count, was.shardcount));
    anchor := called(other.logicalrelid);
  END LOOP;
END$$;
CREATE FUNCTION citus_schema_distribute(schemaname regnamespace) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = citus, public AS $$BEGIN
  PERFORM must_be_coordinator();
  INSERT INTO pg_dist_schema VALUES (schemaname, nextval('pg_dist_colocationid_seq'));
END$$;
CREATE FUNCTION schema_made() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = citus, public AS $$BEGIN
  IF current_setting('citus.enable_schema_based_sharding', true) = 'on' THEN
    PERFORM citus_schema_distribute(objid::regnamespace) FROM pg_event_trigger_ddl_commands() WHERE object_type = 'schema';
  END IF;
END$$;
CREATE EVENT TRIGGER schema_made ON ddl_command_end WHEN TAG IN ('CREATE SCHEMA') EXECUTE FUNCTION schema_made();
CREATE FUNCTION tables_gone() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = citus, public AS $$BEGIN
  DELETE FROM pg_dist_placement WHERE shardid IN (SELECT shardid FROM pg_dist_shard s JOIN pg_event_trigger_dropped_objects() o ON o.objid = s.logicalrelid);
  DELETE FROM pg_dist_shard s USING pg_event_trigger_dropped_objects() o WHERE o.objid = s.logicalrelid;
  DELETE FROM pg_dist_partition s USING pg_event_trigger_dropped_objects() o WHERE o.objid = s.logicalrelid;
END$$;
CREATE EVENT TRIGGER tables_gone ON sql_drop WHEN TAG IN ('DROP TABLE') EXECUTE FUNCTION tables_gone();

CREATE FUNCTION citus_move_shard_placement(shard_id bigint, source_node_name text, source_node_port int, target_node_name text, target_node_port int, shard_transfer_mode text DEFAULT 'auto') RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = citus, public AS $$
DECLARE of regclass; colocation int; range text; source pg_dist_node; target pg_dist_node; one record; columns text; name text; ends timestamptz;
BEGIN
  SELECT logicalrelid, shardminvalue INTO of, range FROM pg_dist_shard WHERE shardid = shard_id;
  IF of IS NULL THEN RAISE 'could not find valid entry for shard %', shard_id USING ERRCODE = 'XX000'; END IF;
  PERFORM must_own(of);
  SELECT * INTO source FROM pg_dist_node WHERE nodename = source_node_name AND nodeport = source_node_port;
  SELECT * INTO target FROM pg_dist_node WHERE nodename = target_node_name AND nodeport = target_node_port AND isactive;
  IF target.nodeid IS NULL THEN RAISE 'Moving shards to a non-existing node is not supported' USING HINT = format('Add the target node via SELECT citus_add_node(''%s'', %s);', target_node_name, target_node_port), ERRCODE = '0A000'; END IF;
  IF NOT target.shouldhaveshards THEN RAISE 'Moving shards to a node that shouldn''t have a shard is not supported' USING ERRCODE = '0A000'; END IF;
  IF EXISTS (SELECT FROM pg_dist_placement WHERE shardid = shard_id AND groupid = target.groupid) THEN
    RAISE WARNING 'shard is already present on node %:%', target_node_name, target_node_port USING DETAIL = 'Move may have already completed.';
    RETURN;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_dist_placement WHERE shardid = shard_id AND groupid = source.groupid) THEN
    RAISE 'could not find placement matching "%:%"', source_node_name, source_node_port USING HINT = 'Confirm the placement still exists and try again.', ERRCODE = '22000';
  END IF;
  SELECT colocationid INTO colocation FROM pg_dist_partition WHERE logicalrelid = of;
  IF NOT pg_try_advisory_xact_lock(4711, colocation) THEN
    RAISE 'could not acquire the lock required to move %', called(of) USING ERRCODE = 'XX000', DETAIL = 'It means that either a concurrent shard move or colocated distributed table creation is happening.', HINT = 'Make sure that the concurrent operation has finished and re-run the command';
  END IF;
  FOR one IN SELECT s.*, relname FROM pg_dist_shard s JOIN pg_dist_partition p USING (logicalrelid) JOIN pg_class c ON c.oid = s.logicalrelid WHERE p.colocationid = colocation AND s.shardminvalue IS NOT DISTINCT FROM range ORDER BY 2 LOOP
    IF shard_transfer_mode = 'auto' AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = one.logicalrelid AND indisprimary) THEN
      RAISE 'cannot use logical replication to transfer shards of the relation % since it doesn''t have a REPLICA IDENTITY or PRIMARY KEY', one.relname USING ERRCODE = '0A000',
        DETAIL = 'UPDATE and DELETE commands on the shard will error out during logical replication unless there is a REPLICA IDENTITY or PRIMARY KEY.', HINT = 'If you wish to continue without a replica identity set the shard_transfer_mode to ''force_logical'' or ''block_writes''.';
    END IF;
    name := called(one.logicalrelid) || '_' || one.shardid;
    PERFORM dblink_exec(at_node(target.nodename, target.nodeport), format('DROP TABLE IF EXISTS %s; %s', name, made_like(one.logicalrelid, one.relname || '_' || one.shardid)));
    SELECT string_agg(format('%I %s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum) INTO columns FROM pg_attribute WHERE attrelid = one.logicalrelid AND attnum > 0 AND NOT attisdropped;
    PERFORM dblink_exec(at_node(target.nodename, target.nodeport), format('INSERT INTO %s SELECT * FROM public.dblink(%L, %L) AS t(%s)', name, at_node(source.nodename, source.nodeport), 'SELECT * FROM ' || name, columns));
  END LOOP;
  ends := clock_timestamp() + make_interval(secs => (SELECT move_seconds FROM stand_in));
  -- A test ends moves in progress by `move_seconds = 0`.
  WHILE clock_timestamp() < ends AND (SELECT move_seconds FROM stand_in) > 0 LOOP PERFORM pg_sleep(0.02); END LOOP;
  IF EXISTS (SELECT FROM stand_in WHERE move_fails = called(of)) THEN
    INSERT INTO pg_dist_cleanup (object_name, node_group_id) VALUES (called(of) || '_' || shard_id, target.groupid);
    RAISE 'could not start logical decoding' USING ERRCODE = 'XX000';
  END IF;
  -- Rows that moved on meanwhile are seen here, as in Citus.
  IF NOT EXISTS (SELECT FROM pg_dist_shard WHERE shardid = shard_id) THEN RAISE 'could not find valid entry for shard %', shard_id USING ERRCODE = 'XX000'; END IF;
  FOR one IN SELECT s.* FROM pg_dist_shard s JOIN pg_dist_partition p USING (logicalrelid) WHERE p.colocationid = colocation AND s.shardminvalue IS NOT DISTINCT FROM range LOOP
    UPDATE pg_dist_placement SET groupid = target.groupid WHERE shardid = one.shardid AND groupid = source.groupid;
    INSERT INTO pg_dist_cleanup (object_name, node_group_id) VALUES (called(one.logicalrelid) || '_' || one.shardid, source.groupid);
  END LOOP;
END$$;
CREATE FUNCTION get_rebalance_progress() RETURNS TABLE (sessionid int, table_name regclass, shardid bigint, shard_size bigint, sourcename text, sourceport int, targetname text, targetport int, progress bigint, source_shard_size bigint, target_shard_size bigint, operation_type text, source_lsn pg_lsn, target_lsn pg_lsn, status text) LANGUAGE sql AS
  'SELECT NULL::int, NULL::regclass, NULL::bigint, NULL::bigint, NULL, NULL::int, NULL, NULL::int, NULL::bigint, NULL::bigint, NULL::bigint, NULL, NULL::pg_lsn, NULL::pg_lsn, NULL WHERE false';
CREATE FUNCTION clean_up() RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = citus, public AS $$BEGIN
  PERFORM dblink_exec(at_node(n.nodename, n.nodeport), 'DROP TABLE IF EXISTS ' || c.object_name) FROM pg_dist_cleanup c JOIN pg_dist_node n ON n.groupid = c.node_group_id AND n.noderole = 'primary';
  DELETE FROM pg_dist_cleanup c USING pg_dist_node n WHERE n.groupid = c.node_group_id AND n.noderole = 'primary';
END$$;
CREATE PROCEDURE citus_cleanup_orphaned_resources() LANGUAGE sql AS 'SELECT clean_up()';
CREATE FUNCTION citus_create_restore_point(text) RETURNS pg_lsn LANGUAGE plpgsql AS $$BEGIN
  PERFORM must_be_superuser('citus_create_restore_point');
  RETURN pg_create_restore_point($1);
END$$;
SET allow_system_table_mods = on;
INSERT INTO pg_extension VALUES (99999, 'citus', 10, 11, false, '13.0-1', NULL, NULL);
